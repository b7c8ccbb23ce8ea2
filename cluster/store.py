"""What the routers of one cluster share, and the contract of whatever keeps it.

`StoreMirror` is what a router works with: it reads from memory and never lets a look-up wait for the store. Only values
and the protocol are here; they must not know where the state is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cluster.quota import Claim, Returned, Verdict

PINS_AT_ONCE = 5_000
"""Most pins in one answer: a router that has just started learns the rest in the following ones."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Load that a router has decided to put on a worker: prompt tokens not known to be computed, and sequences."""

    tokens: int
    sequences: int

    def __add__(self, other: Reserved) -> Reserved:
        return Reserved(self.tokens + other.tokens, self.sequences + other.sequences)


NOTHING = Reserved(0, 0)


@dataclass(frozen=True, slots=True)
class Pin:
    """A session's last worker. `age_s`: since when the store has known it."""

    session_id: str
    worker_id: str
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DrainMark:
    """An operator wants the worker to get nothing new, and to be gone by the deadline. Routers' wall clocks agree to
    within what matters of `deadline_unix_s`. `drain_id` names this order: a later one for the same worker has another.
    """

    worker_id: str
    reason: str
    drain_id: str = ""
    deadline_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """A line of the journal, as bytes that only its writer reads."""

    request_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Changes:
    """What a router has to say since its last word. Saying it twice changes nothing more, if within a lease.

    `reserved`: all of its load by worker, not the difference. `renewed`: its claims that live on, by tenant. `noted`:
    claims it granted alone, while the store was away. `marks`: drain marks to be put back if they are gone. `cursor`:
    where in the pins it stopped reading; empty: nowhere yet.
    """

    reserved: Mapping[str, Reserved] = field(default_factory=dict)
    renewed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    noted: tuple[Claim, ...] = ()
    returned: tuple[Returned, ...] = ()
    pins: tuple[Pin, ...] = ()
    records: tuple[Record, ...] = ()
    marks: tuple[DrainMark, ...] = ()
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the store answers: the load of all other routers by worker, the pins since `cursor`, the drain marks.

    `routers`: how many are alive, the asking one included. `incarnation` changes when the store has lost its content.
    """

    reserved: Mapping[str, Reserved]
    pins: tuple[Pin, ...]
    cursor: str
    marks: Mapping[str, DrainMark]
    routers: int
    incarnation: str


class Store(Protocol):
    """Every call waits for the store, but no longer than its deadline. All raise `StoreUnavailable`."""

    async def exchange(self, router_id: str, changes: Changes) -> Shared:
        """Writes and reads everything; the router is alive for another lease."""
        ...

    async def claim(self, claim: Claim) -> Verdict:
        """Takes from the tenant's quota what all routers together may give. Repeating a claim changes nothing."""
        ...

    async def mark(self, mark: DrainMark) -> None: ...

    async def unmark(self, worker_id: str) -> None:
        """An unknown worker is no error."""
        ...

    async def recall(self, request_id: str) -> bytes | None:
        """The newest record of the request; None when it has left the journal, or never was there."""
        ...

    async def leave(self, router_id: str) -> None:
        """What the router has reserved is forgotten now, not after its lease."""
        ...

    async def close(self) -> None: ...
