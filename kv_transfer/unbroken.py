"""Work that must come to its end although whoever waits for it is cancelled, perhaps more than once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[None, None, T]) -> T:
    """Returns or raises what `work` does; a cancellation that came meanwhile is raised once it has ended."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    ended = task.result()
    if cancelled is not None:
        raise cancelled
    return ended
