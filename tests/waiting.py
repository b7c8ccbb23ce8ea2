"""Waiting for what happens elsewhere, and has no reason to tell a test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

_LOOK_EVERY_S = 0.002


async def eventually(true: Callable[[], bool | Awaitable[bool]], within_s: float = 10.0) -> None:
    """Raises `TimeoutError` when it does not come true in time."""
    async with asyncio.timeout(within_s):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(_LOOK_EVERY_S)
