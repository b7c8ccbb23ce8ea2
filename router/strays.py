"""Outputs that nobody waits for: a ticket in one holds blocks at its worker, which must go back."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from cluster.engine import EngineOutput
from cluster.errors import TicketRefused
from protos.baton.v1 import kv_pb2
from router.actions import Action, Release


def stray_ticket(worker_id: str, output: EngineOutput) -> list[Action]:
    """What to do with an output that nobody waits for."""
    lease_id = lease_of(output.ticket)
    return [Release(worker_id, lease_id)] if lease_id else []


def lease_of(ticket: bytes) -> str:
    """Empty for no ticket. Raises `TicketRefused` for bytes that are none. The rest is for the reader to check."""
    if not ticket:
        return ""
    try:
        return kv_pb2.Ticket.FromString(ticket).lease_id
    except DecodeError as error:
        raise TicketRefused("a ticket that cannot be read") from error
