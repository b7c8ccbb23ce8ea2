"""The end of background tasks, for whoever owns them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels them and waits until they have cleared up. What else one of them ended with is logged.

    Who is cancelled while he waits here is cancelled: his own `CancelledError` must not pass for that of a task.
    """
    ending = list(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending)
    for task in ending:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the task to %s ended badly", task.get_name(), exc_info=error)
