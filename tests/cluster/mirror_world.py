"""Two routers' mirrors on one store in memory, whose connection the test cuts and holds."""

from __future__ import annotations

import asyncio

from cluster.clock import VirtualClock
from cluster.config_store import StoreConfig
from cluster.errors import StoreUnavailable
from cluster.memory_store import MemoryStore
from cluster.quota import Claim, Verdict
from cluster.store import Changes, DrainMark, Shared
from cluster.store_mirror import StoreMirror

CONFIG = StoreConfig(period_s=0.1, lease_s=5.0, pin_s=100.0)


class Link(MemoryStore):
    """A memory store whose connection can be cut, and whose content can be lost."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(CONFIG, clock.now)
        self.cut = False
        self.hold: asyncio.Event | None = None
        self.late: asyncio.Event | None = None
        """Answers to exchanges wait for it."""
        self.hold_writes: asyncio.Event | None = None
        """Exchanges wait for it before they begin."""

    def _check(self) -> None:
        if self.cut:
            raise StoreUnavailable("no answer in 0.25 s")

    async def exchange(self, router_id: str, changes: Changes) -> Shared:
        self._check()
        if self.hold_writes is not None:
            await self.hold_writes.wait()
        shared = await super().exchange(router_id, changes)
        if self.late is not None:
            await self.late.wait()
        return shared

    async def claim(self, claim: Claim) -> Verdict:
        self._check()
        verdict = await super().claim(claim)
        if self.hold is not None:
            await self.hold.wait()
            self._check()
        return verdict

    async def mark(self, mark: DrainMark) -> None:
        self._check()
        await super().mark(mark)

    async def leave(self, router_id: str) -> None:
        self._check()
        await super().leave(router_id)


class World:
    """Two routers on one store."""

    def __init__(self) -> None:
        self.clock = VirtualClock(start=1_000.0)
        self.link = Link(self.clock)
        self.a = StoreMirror(self.link, "a", CONFIG, self.clock)
        self.b = StoreMirror(self.link, "b", CONFIG, self.clock)

    async def exchange(self, times: int = 2) -> None:
        for _ in range(times):
            await self.a.exchange()
            await self.b.exchange()

    async def pass_time(self, seconds: float) -> None:
        """With an exchange of both every second."""
        for _ in range(int(seconds)):
            await self.clock.advance(1.0)
            await self.exchange(1)

    def lose_content(self) -> None:
        fresh = Link(self.clock)
        self.link.__dict__.update(fresh.__dict__)
