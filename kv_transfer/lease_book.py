"""The lease table shared by threads: those of KvSource decide claims and completions, the engine's own thread takes
back blocks.

Every call first ends what is overdue, so whoever looks sees expiry on time and no timer is needed. A block pool is not
thread-safe: ended leases wait here until its own thread asks `take_frees`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from cluster.engine import TransferCount
from cluster.kv_link import KvStats
from kv_transfer.lease import Free, LeaseCounts, LeaseTable, LeaseView, Watermark

T = TypeVar("T")


class LeaseBook:
    """`clock`: monotonic seconds. `on_free` is called, without the lock and on the deciding thread, when blocks wait
    to be taken back."""

    def __init__(
        self, table: LeaseTable, clock: Callable[[], float], on_free: Callable[[], None] | None = None
    ) -> None:
        self._table = table
        self._clock = clock
        self._on_free = on_free
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # an open lease grew, was closed or ended
        self._frees: list[Free] = []

    def offer(self, lease_id: str, block_ids: tuple[int, ...]) -> None:
        with self._lock:
            self._table.offer(lease_id, block_ids, self._clock())

    def open(self, lease_id: str, block_ids: tuple[int, ...]) -> None:
        """As `offer`, but more blocks follow, until `close`."""
        with self._changed:
            self._table.offer(lease_id, block_ids, self._clock(), growing=True)
            self._changed.notify_all()

    def grow(self, lease_id: str, block_ids: tuple[int, ...]) -> bool:
        """False: the lease has ended, and these blocks stay the caller's."""
        return self._decide(lambda now: self._table.grow(lease_id, block_ids, now))

    def close(self, lease_id: str) -> None:
        """No block will follow. No error for a lease that has ended."""
        self._decide(lambda now: self._table.close(lease_id, now))

    def follow(self, lease_id: str, epoch: int, reader_id: str, known_blocks: int, wait_s: float) -> Watermark | None:
        """Claims or renews a growing lease, once it has more than the blocks the reader knows of, but after `wait_s`
        in any case; None while there is none of this id. Raises `LeaseLost`."""
        with self._changed:
            self._changed.wait_for(lambda: self._table.has_news(lease_id, known_blocks), wait_s)
        return self._decide(lambda now: self._table.follow(lease_id, epoch, reader_id, now))

    def claim(self, lease_id: str, epoch: int, reader_id: str) -> float:
        """Seconds until the claim must be renewed. Raises `LeaseLost`."""
        return self._decide(lambda now: self._table.claim(lease_id, epoch, reader_id, now))

    def complete(self, lease_id: str, epoch: int, reader_id: str, rank: int, blocks: int, size: int) -> None:
        """Raises `LeaseLost`: what was read must not be used."""
        self._decide(
            lambda now: self._frees.extend(self._table.complete(lease_id, epoch, reader_id, rank, blocks, size, now))
        )

    def release(self, lease_id: str, reader_id: str = "", rank: int = 0) -> None:
        self._decide(lambda now: self._frees.extend(self._table.release(lease_id, reader_id, rank)))

    @property
    def counts(self) -> LeaseCounts:
        return self._decide(lambda now: self._table.counts)

    def views(self) -> tuple[LeaseView, ...]:
        """The live leases, oldest first."""
        return self._decide(self._table.views)

    def stats(self, transfers: tuple[TransferCount, ...], recomputed_requests: int) -> KvStats:
        """The leases' counts together with those of this engine's own pulls."""
        counts = self.counts
        return KvStats(
            leases=counts.live,
            pinned_blocks=counts.pinned_blocks,
            pending_releases=counts.pending,
            leases_offered=counts.offered,
            leases_released=counts.released,
            leases_expired=counts.expired,
            blocks_sent=counts.blocks_sent,
            bytes_sent=counts.bytes_sent,
            recomputed_requests=recomputed_requests,
            transfers=transfers,
        )

    @property
    def live(self) -> int:
        """Leases that can still be read."""
        return self._decide(lambda now: self._table.live)

    @property
    def frees_wait(self) -> bool:
        """Whether `take_frees` has something to give."""
        return self._decide(lambda now: bool(self._frees))

    def take_frees(self, give_back: Callable[[Free], None]) -> None:
        """Gives every ended lease's blocks back, once. On the thread that owns the blocks."""
        with self._lock:
            self._frees.extend(self._table.expire(self._clock()))
            frees, self._frees = self._frees, []
        if not frees:
            return
        for free in frees:
            give_back(free)
        with self._lock:
            for free in frees:
                self._table.freed(free.lease_id)

    def pins(self) -> dict[int, int]:
        """How many leases hold each block that has not been given back."""
        with self._lock:
            return self._table.pins()

    def check_integrity(self) -> None:
        with self._lock:
            self._table.check_integrity()
            waiting = {free.lease_id for free in self._frees}
            assert len(waiting) == len(self._frees) == self._table.counts.pending, "blocks wait twice, or not at all"

    def _decide(self, decision: Callable[[float], T]) -> T:
        try:
            with self._lock:
                now = self._clock()
                self._frees.extend(self._table.expire(now))
                try:
                    return decision(now)
                finally:
                    self._changed.notify_all()
        finally:
            if self._frees and self._on_free is not None:
                self._on_free()
