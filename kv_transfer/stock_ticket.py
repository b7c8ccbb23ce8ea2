"""The ticket of vLLM's own NixlConnector: its parameters for the reader, signed by us and bound to their prompt.

There is no lease of ours behind it. The parameters are the connector's own and are not looked into: whoever signs them
must have them from its engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import LeaseLost, TicketRefused
from kv_transfer.ticket import VERSION, prompt_digest, sign, verified
from protos.baton.v1 import kv_pb2 as pb


@dataclass(frozen=True, slots=True)
class StockTicket:
    """`params`: JSON values. `fingerprint`: of the writer's packing. `expires_unix_ms`, of the writer's clock: when a
    reader would come too late."""

    attempt_id: str
    worker_id: str
    epoch: int
    num_tokens: int
    prompt_digest: bytes
    fingerprint: bytes
    expires_unix_ms: int
    params: Mapping[str, object]


def seal_stock(ticket: StockTicket, secret: bytes) -> bytes:
    """The ticket as signed bytes."""
    wire = pb.Ticket(
        version=VERSION,
        attempt_id=ticket.attempt_id,
        worker_id=ticket.worker_id,
        epoch=ticket.epoch,
        num_tokens=ticket.num_tokens,
        prompt_digest=ticket.prompt_digest,
        fingerprint=ticket.fingerprint,
        expires_unix_ms=ticket.expires_unix_ms,
        stock_params=json.dumps(dict(ticket.params)).encode(),
    )
    return sign(wire, secret)


def open_stock(data: bytes, secret: bytes) -> StockTicket:
    """Reads a ticket. Raises `TicketRefused`: not a ticket, bad signature, or not one of this connector."""
    wire = verified(data, secret)
    if not wire.stock_params:
        raise TicketRefused("ticket is not one of connector vllm-nixl: run all workers with the same kv_transfer")
    return StockTicket(
        attempt_id=wire.attempt_id,
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        num_tokens=wire.num_tokens,
        prompt_digest=wire.prompt_digest,
        fingerprint=wire.fingerprint,
        expires_unix_ms=wire.expires_unix_ms,
        params=json.loads(wire.stock_params),
    )


def check_reader(ticket: StockTicket, token_ids: Sequence[int], fingerprint: bytes, unix_ms: int) -> None:
    """Whether a reader may use the ticket for this prompt at this time of its own clock.

    Raises `TicketRefused` for a prompt or a packing other than the writer's, `LeaseLost` when the blocks may have been
    given away: the connector itself would read them all the same.
    """
    if ticket.num_tokens != len(token_ids) or prompt_digest(token_ids) != ticket.prompt_digest:
        raise TicketRefused(f"ticket of attempt {ticket.attempt_id!r} is for another prompt")
    if ticket.fingerprint != fingerprint:
        raise TicketRefused(f"worker {ticket.worker_id} packs its KV blocks for another processor than this one")
    if unix_ms >= ticket.expires_unix_ms:
        late_s = (unix_ms - ticket.expires_unix_ms) / 1000
        raise LeaseLost(
            f"ticket of attempt {ticket.attempt_id!r} expired {late_s:.1f} s ago, by the clocks of both hosts"
        )
