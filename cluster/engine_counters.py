"""What a worker's engine counts, fetched anew while there is something to count.

Whoever asks for a count does not wait for a step of the engine. Having an idle engine take back the blocks of leases
that have ended does, and is this module's own task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from cluster.clock import Clock
from cluster.engine import Engine, EngineStats
from cluster.errors import EngineFailed

logger = logging.getLogger(__name__)

_CALL_S = 2.0  # a router that links, or asks what is here, waits for it
_SETTLE_S = 10.0


class EngineCounters:
    """`run` is the worker's background task. `busy`: whether the worker has something open; `counted` is called after
    each count."""

    def __init__(
        self, engine: Engine, clock: Clock, every_s: float, busy: Callable[[], bool], counted: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._every_s = every_s
        self._busy = busy
        self._counted = counted
        self._last = EngineStats()
        self._stirred = False  # since the last count; an idle engine is left alone
        self._dead = False

    @property
    def last(self) -> EngineStats:
        """As of the last count."""
        return self._last

    def stir(self) -> None:
        """The engine has moved: what it counts may have changed."""
        self._stirred = True

    def engine_died(self) -> None:
        """What it has done stays counted; it holds nothing any more, and is not asked again."""
        self._dead = True
        self._last = replace(self._last, running=0, waiting=0, kv_usage=0.0, leases=0, pinned_blocks=0)

    async def run(self) -> None:
        """Until the engine is dead."""
        while not self._dead:
            await self._clock.sleep(self._every_s)
            if self._stirred or self._busy() or self._last.leases or self._last.pinned_blocks:
                self._stirred = False
                await self.refresh()
                if self._last.pending_releases:
                    await self._settle()
                    await self.refresh()

    async def refresh(self) -> None:
        """Counts anew. Of an engine that does not answer in time the last count stays."""
        if self._dead:
            return
        try:
            async with asyncio.timeout(_CALL_S):
                stats = await self._engine.stats()
        except (EngineFailed, TimeoutError) as error:
            logger.warning("the engine's counters are not fresh: %s", str(error) or "no answer in time")
            return
        if not self._dead:
            self._last = stats
            self._counted()

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(_SETTLE_S):
                await self._engine.settle()
        except (EngineFailed, TimeoutError) as error:
            logger.warning("blocks of ended leases wait: %s", str(error) or "no step of the engine in time")
