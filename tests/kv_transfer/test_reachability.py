"""What one pull learns about a path, the next ones know: nobody pays twice for what does not work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kv_transfer.mover import Mover
from tests.kv_transfer.conftest import EPOCH, READER, Fault, HandClock, ScriptedTransport, Source, job, rules
from tests.waiting import eventually

PROBE_S = 2.0
OPEN_S = 5.0


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def mover(fast: ScriptedTransport, slow: ScriptedTransport, clock: HandClock) -> AsyncIterator[Mover]:
    made = Mover([fast, slow], READER, rules(probe_s=PROBE_S, read_s=2.0, open_s=OPEN_S), clock)
    yield made
    await made.close()
    made.check_idle()


async def transport_of_next(mover: Mover, source: Source) -> str:
    result = await mover.pull(job(source.offer()))
    assert result.outcome == "landed"
    return result.transport


async def test_a_path_that_is_cut_costs_all_first_pulls_together_one_probe(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.probe_fault = Fault.STALL
    results = await asyncio.gather(*(mover.pull(job(source.offer())) for _ in range(5)))
    assert {(result.transport, result.outcome) for result in results} == {("slow", "landed")}
    assert (fast.probes, fast.reads) == (1, [])


@pytest.mark.parametrize("fails", ["connect", "probe", "read"])
async def test_the_second_request_does_not_pay_for_what_failed_with_the_first(
    mover: Mover, fast: ScriptedTransport, source: Source, fails: str
) -> None:
    fast.connect_fault = fails == "connect"
    fast.probe_fault = Fault.ERROR if fails == "probe" else None
    fast.read_fault = Fault.ERROR if fails == "read" else None
    first = await mover.pull(job(source.offer()))
    assert [rung.transport for rung in first.fallen] == ["fast"]
    tried = (fast.connected, fast.probes, len(fast.reads))
    second = await mover.pull(job(source.offer()))
    assert (second.transport, second.fallen) == ("slow", ())
    assert (fast.connected, fast.probes, len(fast.reads)) == tried


async def test_a_transport_that_failed_is_probed_beside_a_later_pull_and_used_again(
    mover: Mover, fast: ScriptedTransport, source: Source, clock: HandClock
) -> None:
    fast.read_fault = Fault.ERROR
    assert await transport_of_next(mover, source) == "slow"
    fast.read_fault = None
    clock.time += OPEN_S
    fast.probe_fault = Fault.STALL
    assert [await transport_of_next(mover, source) for _ in range(3)] == ["slow"] * 3
    assert fast.probes == 2
    assert "probes=1" in repr(mover), "a pull waited for a probe"
    fast.probe_fault = None
    await eventually(lambda: "probes=0" in repr(mover))
    assert await transport_of_next(mover, source) == "fast"
    assert fast.probes == 2


async def test_a_probe_that_fails_again_keeps_pulls_away_for_longer(
    mover: Mover, fast: ScriptedTransport, source: Source, clock: HandClock
) -> None:
    fast.probe_fault = Fault.ERROR
    assert await transport_of_next(mover, source) == "slow"
    clock.time += OPEN_S
    await transport_of_next(mover, source)
    await eventually(lambda: fast.probes == 2 and "probes=0" in repr(mover))
    fast.probe_fault = None
    clock.time += 1.9 * OPEN_S
    assert await transport_of_next(mover, source) == "slow"
    assert fast.probes == 2


async def test_when_nothing_is_worth_a_try_the_pull_ends_at_once_and_gives_its_lease_back(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = slow.read_fault = Fault.ERROR
    assert (await mover.pull(job(source.offer()))).outcome == "failed"
    claims = source.service.calls["Claim"]
    result = await mover.pull(job(source.offer()))
    assert (result.transport, result.outcome, result.fallen) == ("none", "skipped", ())
    assert source.service.calls["Claim"] == claims
    await eventually(lambda: len(source.take_back()) == 6)


async def test_a_transport_that_fails_with_one_source_is_used_with_another(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.ERROR
    assert await transport_of_next(mover, source) == "slow"
    fast.read_fault = None
    other = Source()
    assert await transport_of_next(mover, other) == "fast"
    other.close()


async def test_a_worker_that_came_back_at_its_old_address_is_tried_anew(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.ERROR
    assert await transport_of_next(mover, source) == "slow"
    fast.read_fault = None
    old, source.service._epoch = source.offer(), EPOCH + 1
    source.book._table._epoch = source.epoch = EPOCH + 1
    assert await transport_of_next(mover, source) == "fast"
    assert (await mover.pull(job(old))).outcome == "stale"


async def test_a_failed_transport_leaves_the_other_links_and_the_connection_alone(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.ERROR
    for _ in range(3):
        assert await transport_of_next(mover, source) == "slow"
    assert (source.service.calls["Connect"], slow.connected, slow.probes) == (1, 1, 1)
    assert (fast.connected, fast.disconnected) == (1, 1)


async def test_a_pull_that_is_cancelled_at_first_contact_leaves_the_probe_to_those_who_wait_with_it(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.probe_fault = Fault.STALL
    pulls = [asyncio.create_task(mover.pull(job(source.offer()))) for _ in range(2)]
    await eventually(lambda: fast.probes == 1)
    pulls[0].cancel()
    assert (await pulls[0]).outcome == "cancelled"
    fast.probe_fault = None
    assert (await pulls[1]).transport == "fast"
    assert fast.probes == 1


async def test_forbidden_transports_are_never_touched(
    fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    mover = Mover([fast, slow], READER, rules(forbid=frozenset({"fast"})))
    assert await transport_of_next(mover, source) == "slow"
    assert fast.connected == 0
    await mover.close()


async def test_closing_ends_probes_under_way(fast: ScriptedTransport, slow: ScriptedTransport, source: Source) -> None:
    mover = Mover([fast, slow], READER, rules(probe_s=30.0))
    fast.probe_fault = Fault.STALL
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: fast.at_work == 1)
    pulling.cancel()
    await pulling
    await mover.close()
    mover.check_idle()
    assert (fast.at_work, fast.connected - fast.disconnected) == (0, 0)


async def test_a_peer_that_is_too_busy_for_a_probe_is_not_taken_for_one_that_is_away(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.probe_fault = Fault.BUSY
    assert await transport_of_next(mover, source) == "slow"
    fast.probe_fault = None
    assert await transport_of_next(mover, source) == "fast"


async def test_a_busy_answer_to_a_probe_shows_that_the_peer_is_there_again(
    mover: Mover, fast: ScriptedTransport, source: Source, clock: HandClock
) -> None:
    fast.read_fault = Fault.ERROR
    assert await transport_of_next(mover, source) == "slow"
    fast.read_fault, fast.probe_fault = None, Fault.BUSY
    clock.time += OPEN_S
    assert await transport_of_next(mover, source) == "slow"
    await eventually(lambda: "probes=0" in repr(mover))
    fast.probe_fault = None
    assert await transport_of_next(mover, source) == "fast"
