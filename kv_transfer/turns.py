"""One read, once there is room for it: at the reader, where reads take turns, and at the writer, which may be busy.

That there was none says nothing of either, and has a time of its own. Nobody has a turn while he waits for a writer, so
the reads of others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from cluster.errors import Overloaded
from kv_transfer.connections import Link
from kv_transfer.pauses import Pauses
from kv_transfer.transport import BlockRead, Transport

_BUSY_SHARE = 0.5  # of a read's time: for so long a busy writer is asked again


async def read_in_turn(
    link: Link, read: BlockRead, deadline_s: float, begins: Callable[[], None], draw: Callable[[], float]
) -> None:
    """Waits for room for at most `deadline_s`, then reads for at most as long. `begins` is called when bytes are asked
    for. Raises what the transport does, `Overloaded` where there was no room, and `TimeoutError` where the bytes did
    not come in time."""
    time, pauses = asyncio.get_running_loop().time, Pauses(draw)
    give_up = time() + deadline_s
    busy_s = _BUSY_SHARE * deadline_s
    asked = replace(read, busy_s=busy_s)
    was_busy = False
    while True:
        try:
            async with _turn(link.transport, give_up - time()):
                begins()
                async with asyncio.timeout(deadline_s):
                    return await link.transport.read(link.peer, asked)
        except _NoTurn:
            raise Overloaded(f"no turn to read within {deadline_s:g} s: too many other reads are under way") from None
        except Overloaded:
            if not was_busy:
                was_busy, give_up = True, min(give_up, time() + busy_s)
            pause_s = pauses.take()
            if time() + pause_s > give_up:
                raise
        await asyncio.sleep(pause_s)


class _NoTurn(Exception):
    """Too many other reads are under way."""


@asynccontextmanager
async def _turn(transport: Transport[Any], wait_s: float) -> AsyncIterator[None]:
    async with AsyncExitStack() as held:
        try:
            async with asyncio.timeout(wait_s):
                await held.enter_async_context(transport.turn())
        except TimeoutError:
            raise _NoTurn from None
        yield
