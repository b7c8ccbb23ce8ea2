"""Tells an outlet all samples of a process, again and again, for as long as the process serves.

What cannot be told is logged and told the next time: metrics must not end what they measure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from cluster.clock import Clock
from cluster.metrics import Outlet, Sample

logger = logging.getLogger(__name__)

Collect = Callable[[], Awaitable[Iterable[Sample]]]

_AT_ONCE = 64  # samples between two turns of the event loop


async def publish_until_cancelled(collect: Collect, outlet: Outlet, period_s: float, clock: Clock) -> None:
    """To be run as a task by whoever owns the process's work."""
    failing = False
    while True:
        try:
            for number, sample in enumerate(await collect()):
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                outlet.put(sample)
            failing = False
        except Exception:
            if not failing:
                logger.exception("metrics cannot be told; trying again, and saying so no more")
            failing = True
        await clock.sleep(period_s)
