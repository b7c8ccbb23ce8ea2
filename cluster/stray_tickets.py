"""Tickets that came for nobody: the blocks they hold must go back."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from protos.baton.v1 import kv_pb2


def lease_in(ticket: bytes) -> str:
    """Whose end gives the blocks of a ticket back; empty where nobody but time can. Whether the ticket is good is for
    its reader to check."""
    try:
        return kv_pb2.Ticket.FromString(ticket).lease_id
    except DecodeError:
        return ""
