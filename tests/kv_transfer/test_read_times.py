"""For how long a pull waits for its turn and for its bytes, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing

import pytest

from kv_transfer.mover import Mover
from kv_transfer.source_client import SourceClient
from kv_transfer.transport import BlockRead
from tests.kv_transfer.conftest import Fault, ScriptedTransport, Source, job, moving, rules
from tests.waiting import eventually

READ_S = 40.0  # a quarter of it is more than a machine stands still for

Pass = Callable[[float], None]


@pytest.fixture
async def pass_time(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Moves the clock of the event loop: of whoever waits for a time, so many seconds are over."""
    loop, passed = asyncio.get_running_loop(), 0.0
    really = loop.time

    def move(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(loop, "time", lambda: really() + passed)
    return move


@pytest.fixture
async def mover(fast: ScriptedTransport, slow: ScriptedTransport) -> AsyncIterator[Mover]:
    async with moving(fast, slow, rules(probe_s=READ_S, read_s=READ_S)) as made:
        yield made


@pytest.fixture
def source() -> Iterator[Source]:
    running = Source(lease_s=1_000.0)
    yield running
    running.close()


async def test_a_read_that_had_to_wait_for_its_turn_has_all_of_its_time_then(
    mover: Mover, fast: ScriptedTransport, source: Source, pass_time: Pass
) -> None:
    fast.turns, fast.read_fault = asyncio.Semaphore(1), Fault.STALL
    async with fast.turn():
        pulling = asyncio.create_task(mover.pull(job(source.offer())))
        await eventually(lambda: fast.probes == 1)
        pass_time(READ_S / 2)
    await eventually(lambda: len(fast.reads) == 1)
    pass_time(READ_S * 3 / 4)
    await asyncio.wait({pulling}, timeout=0.05)
    assert not pulling.done()
    pass_time(READ_S / 4)
    assert (await pulling).fallen[0].reason.endswith(f"did not arrive within {READ_S:g} s")


async def test_a_read_that_others_interrupt_has_all_of_its_time_anew(
    mover: Mover, fast: ScriptedTransport, source: Source, pass_time: Pass
) -> None:
    begun = 0

    async def read(peer: str, read: BlockRead) -> None:
        nonlocal begun
        begun += 1
        fast.read_fault = Fault.INTERRUPTED if begun < 3 else None
        pass_time(READ_S / 2)
        await asyncio.sleep(0.01)  # as long as it takes for a deadline that is over to be seen
        await really(peer, read)

    really, fast.read = fast.read, read  # type: ignore[method-assign]
    result = await mover.pull(job(source.offer()))
    assert (result.transport, result.fallen, begun) == ("fast", (), 3)


async def test_what_is_interrupted_does_not_begin_anew_with_a_peer_that_failed_meanwhile(
    mover: Mover, fast: ScriptedTransport, source: Source, pass_time: Pass
) -> None:
    """As when two reads of one peer are late: the first one's end interrupts the second."""
    fast.read_fault = Fault.STALL
    late = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: len(fast.reads) == 1)
    pass_time(READ_S / 2)
    second = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: len(fast.reads) == 2)
    pass_time(READ_S / 2)
    await late
    fast.read_fault = Fault.INTERRUPTED
    assert (await second).transport == "slow"
    assert len(fast.reads) == 2


async def test_the_next_transport_waits_until_nothing_can_arrive_over_the_first(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source, pass_time: Pass
) -> None:
    fast.read_fault, fast.lingering = Fault.STALL, True
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: len(fast.reads) == 1)
    pass_time(2 * READ_S)
    await asyncio.wait({pulling}, timeout=0.05)
    assert (len(fast.reads), slow.connected, pulling.done()) == (1, 0, False)
    fast.lingering = False
    assert (await pulling).transport == "slow"


async def test_a_long_read_renews_its_claim(
    fast: ScriptedTransport, slow: ScriptedTransport, pass_time: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_s, held = 30.0, 0
    claim = SourceClient.claim

    async def heard(client: SourceClient, lease_id: str, epoch: int) -> float:
        nonlocal held
        held_s = await claim(client, lease_id, epoch)
        held += 1
        return held_s

    monkeypatch.setattr(SourceClient, "claim", heard)
    async with moving(fast, slow, rules(read_s=10 * lease_s)) as mover:
        with closing(Source(lease_s=lease_s)) as source:
            fast.read_fault = Fault.STALL
            pulling = asyncio.create_task(mover.pull(job(source.offer())))
            for claims in range(1, 6):  # in the end beyond the first claim
                await eventually(lambda: bool(fast.reads) and held >= claims)  # noqa: B023
                pass_time(0.4 * lease_s)
                source.clock.time += 0.4 * lease_s
            fast.read_fault = None
            assert (await pulling).outcome == "landed"
