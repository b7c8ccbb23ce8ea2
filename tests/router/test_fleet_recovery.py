"""Workers that stall, fail or fall silent under a fleet: their requests move at once, and they come back as new."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cluster.engine import Role
from protos.baton.v1 import worker_pb2
from tests.router.scripted_worker import LeaseBook, ScriptedWorker, expected_tokens
from tests.router.test_fleet import PROMPT, Stage, on_stage
from tests.waiting import eventually

SILENT_AFTER_S = 0.5


class Muffled(ScriptedWorker):
    """Its Watch stream says nothing once it is `muffled`, as if nothing of it came through any more."""

    def __init__(self, worker_id: str, role: Role, leases: LeaseBook) -> None:
        super().__init__(worker_id, role, leases)
        self.muffled = False
        self.watches = 0

    async def Watch(  # type: ignore[override]
        self,
        request: worker_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[worker_pb2.WatchRequest, worker_pb2.WatchReply],
    ) -> None:
        self.watches += 1
        self.feed.enter(self.state, "")
        watcher = self.feed.watch(request.beat_s)
        try:
            async for message in watcher:
                if not self.muffled:
                    await context.write(message)
        finally:
            watcher.close()


async def halfway(stage: Stage) -> tuple[ScriptedWorker, ScriptedWorker]:
    """A request of which decode worker d1 has given two tokens; d2 is there too."""
    await stage.add("p", Role.PREFILL)
    first = await stage.add("d1", Role.DECODE)
    first.gate.clear()
    first.free_tokens = 2
    await stage.ask("a", max_tokens=6)
    await stage.listener.until_tokens("a", 3)
    return first, await stage.add("d2", Role.DECODE)


@pytest.mark.parametrize(
    ("state", "kind"), [(worker_pb2.WORKER_STATE_STALLED, "stalled"), (worker_pb2.WORKER_STATE_FAILED, "lost")]
)
async def test_a_worker_that_says_it_is_in_trouble_loses_its_streams_to_others_at_once(
    state: worker_pb2.WorkerState.ValueType, kind: str
) -> None:
    async with on_stage() as stage:
        first, second = await halfway(stage)
        link = stage.fleet._members["d1"].link
        first.feed.enter(state, "no step")
        await stage.listener.until_ended("a")
        assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 6)
        assert dict(stage.fleet.dispatch.counters().recoveries) == {kind: 1}
        if kind == "stalled":
            await first.until(lambda: first.aborted == [first.submits[0].attempt_id])
        assert stage.fleet._members["d1"].link is link, "what is known of its cache stays as long as its session"
        await stage.ask("b")
        await stage.listener.until_ended("b")
        assert len(first.submits) == 1
        first.gate.set()
        second.feed.enter(worker_pb2.WORKER_STATE_STALLED, "no step")
        first.feed.enter(worker_pb2.WORKER_STATE_READY, "")
        await eventually(lambda: [w.worker_id for w in stage.fleet.dispatch.view.ready(Role.DECODE)] == ["d1"])
        await stage.ask("c")
        await stage.listener.until_ended("c")
        assert stage.listener.tokens["c"] == expected_tokens(PROMPT, 5)


async def test_what_a_stalled_worker_says_later_of_a_request_that_has_moved_is_not_heard() -> None:
    async with on_stage() as stage:
        first, _ = await halfway(stage)
        first.deaf = True
        first.feed.enter(worker_pb2.WORKER_STATE_STALLED, "no step")
        await stage.listener.until_ended("a")
        first.gate.set()
        await first.until(lambda: not first.running)
        await stage.ask("b")
        await stage.listener.until_ended("b")
        assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 6)


async def test_a_worker_that_falls_silent_is_left_and_comes_back_with_a_new_session() -> None:
    async with on_stage(silent_after_s=SILENT_AFTER_S) as stage:
        await stage.add("p", Role.PREFILL)
        first = Muffled("d1", Role.DECODE, stage.leases)
        stage.workers["d1"] = first
        await stage.directory.announce(await first.start(), 1000.0)
        await stage.linked("d1")
        first.gate.clear()
        first.free_tokens = 2
        await stage.ask("a", max_tokens=6)
        await stage.listener.until_tokens("a", 3)
        await stage.add("d2", Role.DECODE)
        first.muffled = True
        await stage.linked("d1", there=False)
        await stage.listener.until_ended("a")
        assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 6)
        assert dict(stage.fleet.dispatch.counters().recoveries) == {"stalled": 1}
        first.muffled = False
        await stage.linked("d1")
        await eventually(lambda: first.watches >= 2)


async def test_workers_that_have_nothing_to_do_are_not_silent() -> None:
    async with on_stage(silent_after_s=SILENT_AFTER_S) as stage:
        for worker_id, role in (("p", Role.PREFILL), ("d", Role.DECODE)):
            await stage.add(worker_id, role)
        links = {member.link for member in stage.fleet._members.values()}
        await asyncio.sleep(3 * SILENT_AFTER_S)  # nothing is to happen in this time
        assert {member.link for member in stage.fleet._members.values()} == links


async def test_after_an_error_the_fleet_tries_again_by_itself() -> None:
    async with on_stage() as stage:
        broken = await stage.add("p", Role.PREFILL)
        broken.refuse = "out of memory"
        await stage.add("d", Role.DECODE)
        await stage.ask("a")
        await stage.listener.until_ended("a")
        assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 5)
        assert dict(stage.fleet.dispatch.counters().recoveries) == {"error": 1}
