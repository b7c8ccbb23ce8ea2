"""Tasks are ended by their owner, who can himself be ended while he waits for them."""

from __future__ import annotations

import asyncio

import pytest

from router.task_end import end_tasks


async def test_a_task_has_cleared_up_when_its_end_was_waited_for() -> None:
    begun, cleared = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleared.append(True)

    task = asyncio.create_task(work())
    await begun.wait()
    await end_tasks([task])
    assert cleared == [True]


async def test_who_is_cancelled_while_he_waits_is_cancelled_and_what_he_waits_for_still_clears_up() -> None:
    begun, clearing, may_end, cleared = (asyncio.Event() for _ in range(4))

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            clearing.set()
            await may_end.wait()
            cleared.set()

    async def owner() -> None:
        while True:
            await end_tasks([task])

    task = asyncio.create_task(work())
    await begun.wait()
    ending = asyncio.create_task(owner())
    await clearing.wait()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(ending, 5)
    assert not cleared.is_set()
    may_end.set()
    await asyncio.wait({task})
    assert cleared.is_set()


async def test_what_else_a_task_ended_with_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("no route")

    task = asyncio.create_task(fail(), name="follow the directory")
    await asyncio.wait({task})
    await end_tasks([task])
    assert "the task to follow the directory ended badly" in caplog.text
    assert "no route" in caplog.text
