"""How long a reader keeps its connections to sources: workers come and go, and none of them says goodbye."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from cluster.errors import TransferFailed
from kv_transfer.connections import Connection, Connections
from kv_transfer.mover import Mover
from kv_transfer.ticket import Ticket
from tests.kv_transfer.conftest import READER, HandClock, ScriptedTransport, Source, job, rules
from tests.waiting import eventually

WEEK_S = 7 * 24 * 3600.0


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def mover(fast: ScriptedTransport, clock: HandClock) -> AsyncIterator[Mover]:
    made = Mover([fast], READER, rules(), clock)
    yield made
    made.check_idle()
    await made.close()
    assert fast.connected == fast.disconnected


@pytest.fixture
def new_source() -> Iterator[Callable[[], Source]]:
    made: list[Source] = []

    def new() -> Source:
        made.append(Source())
        return made[-1]

    yield new
    for source in made:
        source.close()


async def pull(mover: Mover, source: Source) -> None:
    assert (await mover.pull(job(source.offer()))).outcome == "landed"


async def test_a_connection_that_nobody_has_used_for_long_goes_when_another_one_is_made(
    mover: Mover, fast: ScriptedTransport, clock: HandClock, new_source: Callable[[], Source]
) -> None:
    gone, stays = new_source(), new_source()
    await pull(mover, gone)
    await pull(mover, stays)
    clock.time += WEEK_S
    await pull(mover, stays)
    assert (fast.connected, fast.disconnected) == (2, 0)
    await pull(mover, new_source())
    assert (fast.connected, fast.disconnected) == (3, 1)
    await pull(mover, stays)
    assert stays.service.calls["Connect"] == 1


async def test_of_too_many_connections_the_one_that_was_used_least_recently_goes(
    mover: Mover, new_source: Callable[[], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kv_transfer.connections._MOST_KEPT", 2)
    first, second = new_source(), new_source()
    await pull(mover, first)
    await pull(mover, second)
    await pull(mover, first)
    await pull(mover, new_source())
    await pull(mover, first)
    assert first.service.calls["Connect"] == 1
    await pull(mover, second)
    assert second.service.calls["Connect"] == 2


async def test_a_source_is_dialled_by_one_at_a_time_although_another_one_is_forgotten_meanwhile(
    new_source: Callable[[], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fails, the second may go next, and before it does, the connection to another source is given up."""
    wanted, other = new_source().offer(), new_source().offer()
    fails, breaks, comes = asyncio.Event(), asyncio.Event(), asyncio.Event()
    dialling: Counter[str] = Counter()
    dialled: list[int] = []
    connect = Connections._connect

    async def watched(self: Connections, ticket: Ticket) -> Connection:
        dialling[ticket.source] += 1
        dialled.append(dialling[ticket.source])
        try:
            if ticket is wanted and not fails.is_set():
                await fails.wait()
                raise TransferFailed("nobody is there")
            return await connect(self, ticket)
        finally:
            dialling[ticket.source] -= 1

    monkeypatch.setattr(Connections, "_connect", watched)
    connections = Connections([], READER, 10.0, lambda: 0.0)

    async def use(ticket: Ticket, begin: asyncio.Event | None = None, end: asyncio.Event | None = None) -> None:
        if begin is not None:
            await begin.wait()
        async with connections.to(ticket):
            if end is not None:
                await end.wait()
                raise TransferFailed("it went away")

    broken = asyncio.create_task(use(other, end=breaks))
    await eventually(lambda: "users=1" in repr(connections))
    first = asyncio.create_task(use(wanted))
    await eventually(lambda: dialling[wanted.source] == 1)
    rest = [asyncio.create_task(use(wanted)), asyncio.create_task(use(wanted, begin=comes))]
    await asyncio.sleep(0)
    for event in (fails, breaks, comes):  # those who wait wake up in this order, all before the second gets its turn
        event.set()
    ended = await asyncio.gather(broken, first, *rest, return_exceptions=True)
    assert [type(error) for error in ended] == [TransferFailed, TransferFailed, type(None), type(None)]
    assert max(dialled) == 1
    connections.check_idle()
    await connections.close()
