"""The contract of a transport: reading blocks of a peer's memory into blocks of our own.

All methods are called from one thread. Leases, tickets and deadlines are the mover's business; a transport knows
addresses and block ids only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Region:
    """The blocks of one layer. `stride`: bytes from one block to the next; `block_bytes`: bytes of one block."""

    address: int
    stride: int
    block_bytes: int
    num_blocks: int


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a peer must know to read from one rank. `offers`: by name of the transport, what its reader needs to
    connect; opaque to all others."""

    offers: Mapping[str, bytes]
    layout: Layout


class ReadState(Enum):
    MOVING = "moving"
    DONE = "done"
    FAILED = "failed"


P = TypeVar("P")
R = TypeVar("R")


class Transport(Protocol[P, R]):
    """`P` is a connected peer, `R` a read in progress."""

    @property
    def name(self) -> str: ...

    def endpoint(self) -> Endpoint: ...

    def connect(self, endpoint: Endpoint) -> P:
        """Prepares reads from a peer. Raises `TransferFailed`."""
        ...

    def disconnect(self, peer: P) -> None:
        """Forgets a peer without reads in progress. A peer that is already gone is no error."""
        ...

    def start(self, peer: P, source: tuple[int, ...], target: tuple[int, ...]) -> R:
        """Begins to read blocks `source` of the peer into blocks `target` here, of every layer. May block while bytes
        move. Raises `TransferFailed`; then nothing moves."""
        ...

    def poll(self, read: R) -> ReadState:
        """Lets the read progress. After DONE or FAILED the caller must still `cancel` to let go of it."""
        ...

    def cancel(self, read: R) -> bool:
        """Ends the read and lets go of it. False: bytes may still arrive, so the target blocks must be kept; ask
        again."""
        ...

    def progress(self) -> None:
        """Serves peers that connect to us or read from us."""
        ...

    def close(self) -> None: ...
