"""How long a reader keeps its connections to sources: workers come and go, and none of them says goodbye."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from kv_transfer.mover import Mover
from tests.kv_transfer.conftest import READER, HandClock, ScriptedTransport, Source, job, rules

WEEK_S = 7 * 24 * 3600.0


@pytest.fixture
def fast() -> ScriptedTransport:
    return ScriptedTransport("fast")


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
