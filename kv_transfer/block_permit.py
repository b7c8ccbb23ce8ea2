"""Which reads of blocks are allowed: from the bytes of a request to a permit, or to a refusal with its reason.

Pure; knows the ticket's key, this engine's epoch and its number of blocks. What is refused is refused before the first
byte of a block is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from cluster.errors import BatonError, InvalidRequest, LeaseLost, TicketRefused
from kv_transfer.ticket import check_blocks, unseal
from kv_transfer.transport import Layout
from protos.baton.v1 import kv_pb2 as pb


class ReadRefused(Exception):
    """`reason` is the name under which the refusal is counted."""

    def __init__(self, reason: str, status: grpc.StatusCode, error: BatonError) -> None:
        super().__init__(reason, status, error)
        self.reason = reason
        self.status = status
        self.error = error


@dataclass(frozen=True, slots=True)
class TicketRule:
    """What a valid ticket is to this engine. `block_size`: tokens."""

    secret: bytes
    epoch: int
    block_size: int


@dataclass(frozen=True, slots=True)
class ReadPermit:
    """`offset`: bytes of the whole read to skip. `frame_bytes`: as wanted, 0 for no wish."""

    block_ids: tuple[int, ...]
    offset: int
    frame_bytes: int

    @property
    def is_probe(self) -> bool:
        """Asks for no block, only for an answer."""
        return not self.block_ids


def permit(data: bytes, rule: TicketRule, layout: Layout) -> ReadPermit:
    """Raises `ReadRefused`."""
    try:
        request = pb.ReadBlocksRequest.FromString(data)
    except DecodeError:
        raise _malformed("not a request for blocks: the bytes cannot be decoded") from None
    ids = tuple(request.block_ids)
    if ids or request.ticket:
        _check_ticket(request.ticket, ids, rule, layout)
    if request.offset > len(ids) * layout.block_bytes:
        raise _malformed(f"offset {request.offset} of a read of {len(ids) * layout.block_bytes} bytes")
    return ReadPermit(ids, request.offset, request.frame_bytes)


def _check_ticket(sealed: bytes, ids: tuple[int, ...], rule: TicketRule, layout: Layout) -> None:
    try:
        ticket = unseal(sealed, rule.secret, rule.block_size)
    except TicketRefused as error:
        raise _denied("ticket", error) from None
    if ticket.epoch != rule.epoch:
        raise _denied("epoch", LeaseLost(f"the ticket is of epoch {ticket.epoch}, this engine's is {rule.epoch}"))
    try:
        check_blocks(ticket, layout.num_blocks)
    except TicketRefused as error:
        raise _denied("blocks", error) from None
    if foreign := set(ids).difference(ticket.block_ids):
        raise _denied("blocks", TicketRefused(f"block {min(foreign)} is not among those of the ticket"))
    if not ids or len(ids) > len(ticket.block_ids):
        raise _denied("blocks", TicketRefused(f"{len(ids)} blocks asked of a ticket for {len(ticket.block_ids)}"))


def _denied(reason: str, error: BatonError) -> ReadRefused:
    return ReadRefused(reason, grpc.StatusCode.PERMISSION_DENIED, error)


def _malformed(text: str) -> ReadRefused:
    return ReadRefused("malformed", grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest(text))
