"""Who is alive: the record a worker announces, and what a directory of them can do.

`directory.RayDirectory` keeps it in a detached Ray actor; `MemoryDirectory` serves tests and the simulator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.clock import Clock
from cluster.engine import Role
from cluster.errors import DeadlineExceeded

logger = logging.getLogger(__name__)

WORKER_TTL_S = 10.0
_RENEWALS_PER_TTL = 3


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """`epoch` changes with every engine start; `address` is host:port of the worker's gRPC server."""

    worker_id: str
    role: Role
    epoch: int
    address: str


@dataclass(frozen=True, slots=True)
class Membership:
    """All live records, ordered by worker id. `version` grows with every change."""

    version: int
    workers: tuple[WorkerRecord, ...]


class Directory(Protocol):
    """Workers announce and renew, routers watch. A record not renewed within its time to live disappears."""

    async def announce(self, record: WorkerRecord, ttl_s: float) -> None:
        """Adds or renews. A record with an older epoch than the one held for that worker is ignored."""
        ...

    async def withdraw(self, worker_id: str, epoch: int) -> None:
        """Removes the record if it is of this epoch; otherwise nothing happens."""
        ...

    def watch(self) -> AsyncIterator[Membership]:
        """Yields the membership at once, then after each change."""
        ...


class MembershipTable:
    """The state behind every directory: pure, moved by calls that carry the time."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[WorkerRecord, float]] = {}
        self._version = 1

    @property
    def membership(self) -> Membership:
        records = sorted((record for record, _ in self._records.values()), key=lambda r: r.worker_id)
        return Membership(self._version, tuple(records))

    @property
    def next_expiry(self) -> float | None:
        return min((deadline for _, deadline in self._records.values()), default=None)

    def announce(self, record: WorkerRecord, ttl_s: float, now: float) -> None:
        held = self._records.get(record.worker_id)
        if held is not None and held[0].epoch > record.epoch:
            return
        self._records[record.worker_id] = (record, now + ttl_s)
        if held is None or held[0] != record:
            self._version += 1

    def withdraw(self, worker_id: str, epoch: int) -> None:
        held = self._records.get(worker_id)
        if held is not None and held[0].epoch == epoch:
            del self._records[worker_id]
            self._version += 1

    def expire(self, now: float) -> tuple[WorkerRecord, ...]:
        """Drops what was not renewed in time, and returns it."""
        late = tuple(record for record, deadline in self._records.values() if deadline <= now)
        for record in late:
            del self._records[record.worker_id]
        self._version += bool(late)
        return late


class MemoryDirectory:
    """A directory inside one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._table = MembershipTable()
        self._changed = asyncio.Condition()

    async def announce(self, record: WorkerRecord, ttl_s: float) -> None:
        await self._apply(lambda: self._table.announce(record, ttl_s, self._clock.now()))

    async def withdraw(self, worker_id: str, epoch: int) -> None:
        await self._apply(lambda: self._table.withdraw(worker_id, epoch))

    async def expire(self) -> None:
        """Drops late records now; whoever owns the directory calls it."""
        await self._apply(lambda: self._table.expire(self._clock.now()))

    async def watch(self) -> AsyncIterator[Membership]:
        seen = 0
        while True:
            async with self._changed:
                while self._table.membership.version == seen:
                    await self._changed.wait()
                membership = self._table.membership
            seen = membership.version
            yield membership

    async def _apply(self, change: Callable[[], object]) -> None:
        async with self._changed:
            change()
            self._changed.notify_all()


async def announce_until_cancelled(directory: Directory, record: WorkerRecord, ttl_s: float, clock: Clock) -> None:
    """Renews several times within each time to live. A directory that does not answer is tried again, for ever."""
    while True:
        try:
            await directory.announce(record, ttl_s)
        except DeadlineExceeded as error:
            logger.warning("worker %s could not announce itself: %s", record.worker_id, error)
        await clock.sleep(ttl_s / _RENEWALS_PER_TTL)
