"""The ticket: what a prefill engine hands over so that another engine can fetch the KV blocks of one prompt.

Owns its form, its signature and the checks that need nothing but the ticket and the reader's own facts. Whether the
lease behind it still holds is for the lease's owner to say.
"""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from cluster.errors import TicketRefused
from protos.baton.v1 import kv_pb2 as pb

VERSION = 1
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Ticket:
    """`groups`: block ids in prompt order, one tuple a KV cache group. `source`: host:port of the writer's KvSource.
    `expires_unix_ms` is of the writer's clock and for logs only."""

    attempt_id: str
    lease_id: str
    worker_id: str
    epoch: int
    num_tokens: int
    groups: tuple[tuple[int, ...], ...]
    fingerprint: bytes
    source: str
    prompt_digest: bytes
    expires_unix_ms: int = 0

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Of the only group: models with several are refused before any ticket is made."""
        return self.groups[0]


def prompt_digest(token_ids: Sequence[int], context: str = "") -> bytes:
    """What the KV blocks of these tokens depend on, 16 bytes. `context`: whatever they depend on besides the tokens,
    such as a LoRA adapter."""
    digest = hashlib.blake2b(array("I", token_ids).tobytes(), digest_size=16)
    digest.update(context.encode())
    return digest.digest()


def seal(ticket: Ticket, secret: bytes) -> bytes:
    """The ticket as signed bytes."""
    wire = pb.Ticket(
        version=VERSION,
        attempt_id=ticket.attempt_id,
        lease_id=ticket.lease_id,
        worker_id=ticket.worker_id,
        epoch=ticket.epoch,
        num_tokens=ticket.num_tokens,
        groups=[pb.BlockGroup(block_ids=ids) for ids in ticket.groups],
        fingerprint=ticket.fingerprint,
        source=ticket.source,
        prompt_digest=ticket.prompt_digest,
        expires_unix_ms=ticket.expires_unix_ms,
    )
    return sign(wire, secret)


def sign(wire: pb.Ticket, secret: bytes) -> bytes:
    """The bytes of a whole ticket but for its `hmac`, which is filled in."""
    wire.hmac = _signature(wire, secret)
    return wire.SerializeToString(deterministic=True)


def verified(data: bytes, secret: bytes) -> pb.Ticket:
    """What `sign` made of a ticket. Raises `TicketRefused`: not a ticket, other version, bad signature."""
    wire = _parse(data)
    if wire.version != VERSION:
        raise TicketRefused(f"ticket has version {wire.version}, this engine reads {VERSION}: run one release")
    signature = wire.hmac
    wire.ClearField("hmac")
    if not hmac.compare_digest(signature, _signature(wire, secret)):
        raise TicketRefused("ticket's signature is wrong: do all workers have the same ticket secret?")
    return wire


def unseal(data: bytes, secret: bytes, block_size: int) -> Ticket:
    """Reads a ticket. Raises `TicketRefused`: not a ticket, other version, bad signature, or blocks that cannot hold
    its tokens in blocks of `block_size` tokens."""
    wire = verified(data, secret)
    ticket = Ticket(
        attempt_id=wire.attempt_id,
        lease_id=wire.lease_id,
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        num_tokens=wire.num_tokens,
        groups=tuple(tuple(group.block_ids) for group in wire.groups),
        fingerprint=wire.fingerprint,
        source=wire.source,
        prompt_digest=wire.prompt_digest,
        expires_unix_ms=wire.expires_unix_ms,
    )
    _check_form(ticket, block_size)
    return ticket


def check_prompt(ticket: Ticket, token_ids: Sequence[int], context: str = "") -> None:
    """Raises `TicketRefused` unless the ticket's tokens are the beginning of this prompt in this context."""
    if ticket.num_tokens > len(token_ids):
        raise TicketRefused(f"ticket holds {ticket.num_tokens} tokens, the prompt has {len(token_ids)}")
    if prompt_digest(token_ids[: ticket.num_tokens], context) != ticket.prompt_digest:
        raise TicketRefused(f"ticket of attempt {ticket.attempt_id!r} is for another prompt")


def check_blocks(ticket: Ticket, num_blocks: int) -> None:
    """Raises `TicketRefused` for block ids that a writer of `num_blocks` blocks does not have."""
    outside = next((i for ids in ticket.groups for i in ids if i >= num_blocks), None)
    if outside is not None:
        raise TicketRefused(f"ticket names block {outside}, but {ticket.source} has {num_blocks} blocks")


def _parse(data: bytes) -> pb.Ticket:
    if len(data) > _MOST_BYTES:
        raise TicketRefused(f"ticket has {len(data)} bytes, at most {_MOST_BYTES} are read")
    try:
        wire = pb.Ticket.FromString(data)
    except DecodeError:
        raise TicketRefused("not a ticket: the bytes cannot be decoded") from None
    if wire.SerializeToString(deterministic=True) != data:  # the signature is of the message, not of its bytes
        raise TicketRefused("not a ticket: its bytes are not as a writer would have written them")
    return wire


def _check_form(ticket: Ticket, block_size: int) -> None:
    if not (ticket.lease_id and ticket.source and ticket.num_tokens):
        raise TicketRefused("ticket lacks its lease, its source or its tokens")
    if len(ticket.groups) != 1:
        raise TicketRefused(f"ticket has {len(ticket.groups)} KV cache groups, this connector moves 1")
    needed = -(-ticket.num_tokens // block_size)
    if len(ticket.block_ids) != needed:
        raise TicketRefused(
            f"ticket has {len(ticket.block_ids)} blocks for {ticket.num_tokens} tokens; in blocks of {block_size} they "
            f"need {needed}"
        )
    if len(set(ticket.block_ids)) != needed:
        raise TicketRefused("ticket names a block twice")


def _signature(wire: pb.Ticket, secret: bytes) -> bytes:
    return hmac.digest(secret, wire.SerializeToString(deterministic=True), "sha256")
