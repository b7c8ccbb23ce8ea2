"""The virtual clock: sleepers wake in order, each at its own moment."""

from __future__ import annotations

import asyncio

from cluster.clock import RealClock, VirtualClock


async def test_sleepers_wake_in_the_order_of_their_deadlines_and_see_their_own_time() -> None:
    clock, woken = VirtualClock(), []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now()))

    tasks = [asyncio.create_task(sleeper(name, s)) for name, s in (("late", 3.0), ("early", 1.0), ("never", 9.0))]
    await clock.advance(5.0)
    assert woken == [("early", 1.0), ("late", 3.0)]
    assert clock.now() == 5.0
    tasks[-1].cancel()


async def test_a_sleep_started_on_the_way_ends_on_the_way() -> None:
    clock, moments = VirtualClock(), []

    async def ticker() -> None:
        while True:
            await clock.sleep(1.0)
            moments.append(clock.now())

    task = asyncio.create_task(ticker())
    await clock.advance(3.5)
    assert moments == [1.0, 2.0, 3.0]
    task.cancel()


async def test_a_cancelled_sleeper_does_not_stop_the_clock() -> None:
    clock = VirtualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await clock.advance(2.0)
    assert task.cancelled()
    assert clock.now() == 2.0


async def test_the_real_clock_advances_by_what_it_sleeps() -> None:
    clock = RealClock()
    before = clock.now()
    await clock.sleep(0.01)
    assert clock.now() - before >= 0.009
