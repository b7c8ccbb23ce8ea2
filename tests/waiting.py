"""Waiting for what happens elsewhere, and has no reason to tell a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

_LOOK_EVERY_S = 0.002
_LONGEST_GAP_S = 0.1


async def eventually(true: Callable[[], bool | Awaitable[bool]], within_s: float = 10.0) -> None:
    """Raises `TimeoutError` when it does not come true in time."""
    async with asyncio.timeout(within_s):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(_LOOK_EVERY_S)


@asynccontextmanager
async def running_time() -> AsyncIterator[Callable[[], float]]:
    """Seconds since now for which the event loop has turned. Where the machine stands still, or something holds the
    loop, no more than a tenth of one counts."""
    loop, passed = asyncio.get_running_loop(), 0.0

    async def count() -> None:
        nonlocal passed
        looked = loop.time()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now = loop.time()
            passed, looked = passed + min(now - looked, _LONGEST_GAP_S), now

    counting = asyncio.create_task(count())
    try:
        yield lambda: passed
    finally:
        counting.cancel()
        await asyncio.wait({counting})
