"""The contract of a transport: reading blocks of a peer's memory into blocks of our own.

All methods are called on one event loop. Leases, deadlines and what is tried after a failure are the mover's business;
a transport knows addresses and block ids only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Region:
    """The blocks of one layer. `stride`: bytes from one block to the next; `block_bytes`: bytes of one block."""

    address: int
    stride: int
    block_bytes: int
    num_blocks: int

    @property
    def size(self) -> int:
        """Bytes from the first of its blocks to the end of the last one; what is behind that, up to the next stride,
        may be nobody's."""
        return self.stride * (self.num_blocks - 1) + self.block_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks of one rank lie: a region a layer, in layer order. `memory` is DRAM or VRAM."""

    regions: tuple[Region, ...]
    memory: str = "DRAM"
    device_id: int = 0

    @property
    def num_blocks(self) -> int:
        return min(region.num_blocks for region in self.regions)

    @property
    def block_bytes(self) -> int:
        """Of one block over all layers."""
        return sum(region.block_bytes for region in self.regions)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Bytes of one block, layer by layer."""
        return tuple(region.block_bytes for region in self.regions)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a peer must know to read from one rank. `offers`: by name of the transport, what its reader needs to
    connect; opaque to all others."""

    offers: Mapping[str, bytes]
    layout: Layout


@dataclass(frozen=True, slots=True)
class BlockRead:
    """Blocks `source` of the peer into as many blocks `target` of ours, in the same order, of every layer. `ticket`:
    sealed; proves to a peer that asks for it that `source` is ours to read. `busy_s`: for how many seconds a peer that
    has no room for the rest of a read is asked again."""

    ticket: bytes
    source: tuple[int, ...]
    target: tuple[int, ...]
    busy_s: float = field(default=math.inf, compare=False)


class Interrupted(Exception):
    """A read or a probe was ended because another one, perhaps of another peer, could not be ended alone. Nothing is
    wrong with the peer, and nothing arrives any more."""


MOST_ANEW = 2
"""How often what was interrupted begins anew, each time with all of its time."""

P = TypeVar("P")


class Transport(Protocol[P]):
    """`P` is a connected peer."""

    @property
    def name(self) -> str: ...

    def offer(self) -> bytes:
        """What a peer needs to read from here: our entry in `Endpoint.offers`."""
        ...

    def connect(self, endpoint: Endpoint) -> P:
        """Prepares reads from a peer that has an offer of this transport; does not wait for it. Raises
        `TransferFailed`."""
        ...

    async def probe(self, peer: P) -> None:
        """Proves that bytes come from the peer, without touching any block. Raises `TransferFailed`, and `Overloaded`
        when the peer has no room, and `Interrupted`; the deadline is the caller's. Leaves nothing behind, however it
        ends."""
        ...

    def turn(self) -> AbstractAsyncContextManager[object]:
        """To be held during a read; entering waits until there is room here for one more, which says nothing of the
        peer."""
        ...

    async def read(self, peer: P, read: BlockRead) -> None:
        """Returns once every byte is there. Raises `TransferFailed`, `Overloaded` when the peer has no room, and
        `Interrupted`; the deadline is the caller's.

        However it ends, also when it is cancelled, nothing can write into the target blocks any more by then: as long
        as bytes may still arrive it does not end.
        """
        ...

    def disconnect(self, peer: P) -> None:
        """Forgets a peer without reads in progress. A peer that is already gone is no error."""
        ...

    def progress(self) -> None:
        """Serves peers that connect to us or read from us, where the transport has no thread of its own for it. Alone
        of all methods it is called on another thread, and no more once `close` is."""
        ...

    def close(self) -> None: ...
