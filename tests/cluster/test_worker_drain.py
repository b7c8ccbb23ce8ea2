"""A worker that drains: by its times on a virtual clock, and with sessions over real gRPC."""

from __future__ import annotations

import asyncio

import pytest

from cluster.clock import VirtualClock
from cluster.engine import Leg, Role
from cluster.worker import State
from cluster.worker_drain import LINGER_S, WorkerDrain
from protos.baton.v1 import worker_pb2 as pb
from tests.cluster.worker_bench import Bench, Router
from tests.waiting import eventually


class Host:
    """Counts what is open, and writes down what happens to it."""

    def __init__(self) -> None:
        self.attempts = 0
        self.leases = 0
        self.counting: asyncio.Event | None = None
        """The engine takes until then to count its leases."""
        self.seen: list[str] = []

    def draining(self, reason: str) -> None:
        self.seen.append(f"draining: {reason}")

    def undrained(self) -> None:
        self.seen.append("undrained")

    def open_attempts(self) -> int:
        return self.attempts

    async def open_leases(self) -> int:
        if self.counting is not None:
            await self.counting.wait()
        return self.leases

    async def move_attempts(self, reason: str) -> None:
        self.seen.append("moved")
        self.attempts = 0


class Stage:
    def __init__(self) -> None:
        self.host, self.clock = Host(), VirtualClock()
        self.drain = WorkerDrain(self.host, self.clock)
        self.running = asyncio.create_task(self.drain.run())

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        if self.running.done():
            self.running.result()


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_an_idle_worker_lingers_until_everybody_has_heard_of_it(stage: Stage) -> None:
    stage.drain.give("a", 60.0, "new disk")
    await stage.advance(LINGER_S / 2)
    assert not stage.drain.ended.is_set()
    await stage.advance(LINGER_S)
    assert stage.drain.drained.is_set()
    assert stage.drain.clean
    assert stage.host.seen == ["draining: new disk"]


async def test_attempts_and_then_leases_are_waited_for(stage: Stage) -> None:
    stage.host.attempts = stage.host.leases = 1
    stage.drain.give("a", 60.0, "")
    await stage.advance(10.0)
    stage.host.attempts = 0
    await stage.advance(10.0)
    assert not stage.drain.ended.is_set()
    stage.host.leases = 0
    await stage.advance(1.0)
    assert stage.drain.clean
    assert "moved" not in stage.host.seen


async def test_what_is_open_at_the_deadline_moves_and_nothing_undoes_that(stage: Stage) -> None:
    stage.host.attempts = 1
    stage.drain.give("a", 60.0, "")
    await stage.advance(59.9)
    assert stage.drain.left_s == pytest.approx(0.1)
    assert "moved" not in stage.host.seen
    await stage.advance(0.2)
    assert stage.host.seen[-1] == "moved"
    stage.drain.undo("a")
    await stage.advance(0.1)
    assert stage.drain.drained.is_set()
    assert not stage.drain.clean
    assert "undrained" not in stage.host.seen


async def test_a_deadline_of_nothing_moves_at_once_and_still_lingers(stage: Stage) -> None:
    stage.host.attempts = 1
    stage.drain.give("a", 0.0, "")
    await stage.advance(0.01)
    assert stage.host.seen[-1] == "moved"
    assert not stage.drain.ended.is_set()
    await stage.advance(LINGER_S + 0.1)
    assert stage.drain.ended.is_set()


@pytest.mark.parametrize("again", [False, True], ids=["undone", "undone and ordered again"])
async def test_a_drain_that_is_undone_while_leases_are_counted_does_not_end_the_worker(
    stage: Stage, again: bool
) -> None:
    stage.host.counting = asyncio.Event()
    stage.drain.give("a", 60.0, "")
    await stage.advance(LINGER_S + 1.0)
    stage.drain.undo("a")
    stage.host.attempts = 1
    if again:
        stage.drain.give("b", 60.0, "")
    stage.host.counting.set()
    await stage.advance(1.0)
    assert not stage.drain.ended.is_set()
    assert stage.drain.left_s == (pytest.approx(59.0) if again else None)


async def test_reads_that_are_under_way_at_the_deadline_get_a_few_seconds(stage: Stage) -> None:
    stage.host.leases = 1
    stage.drain.give("a", 1.0, "")
    await stage.advance(3.0)
    assert not stage.drain.ended.is_set()
    stage.host.leases = 0
    await stage.advance(0.2)
    assert stage.drain.ended.is_set()


async def test_a_lease_that_nobody_reads_does_not_hold_the_worker(stage: Stage) -> None:
    stage.host.leases = 1
    stage.drain.give("a", 1.0, "")
    await stage.advance(10.0)
    assert stage.drain.ended.is_set()


async def test_undone_in_time_it_takes_work_and_may_be_drained_again(stage: Stage) -> None:
    stage.host.attempts = 1
    stage.drain.give("a", 60.0, "first")
    await stage.advance(5.0)
    stage.drain.undo("a")
    await stage.advance(600.0)
    assert (stage.drain.left_s, stage.host.seen) == (None, ["draining: first", "undrained"])
    stage.drain.give("b", 1.0, "second")
    await stage.advance(2.0)
    assert stage.drain.drained.is_set()


async def test_the_owner_cuts_a_long_drain_short(stage: Stage) -> None:
    stage.host.attempts = 1
    stage.drain.give("a", 3_600.0, "")
    await stage.advance(5.0)
    stage.drain.stop(10.0, "it is being stopped")
    await stage.advance(9.0)
    assert not stage.drain.ended.is_set()
    await stage.advance(2.0)
    assert stage.drain.ended.is_set()


async def test_a_worker_that_breaks_is_not_waited_for_and_was_not_drained(stage: Stage) -> None:
    stage.host.attempts = 1
    stage.drain.give("a", 60.0, "")
    await stage.advance(1.0)
    stage.drain.give_up()
    assert stage.drain.ended.is_set()
    assert not stage.drain.drained.is_set()
    stage.running.cancel()


# With sessions


def drain(drain_id: str = "a", deadline_s: float = 60.0, *, undo: bool = False) -> pb.SessionRequest:
    return pb.SessionRequest(drain=pb.Drain(drain_id=drain_id, deadline_s=deadline_s, reason="new disk", undo=undo))


async def test_a_router_drains_the_worker_and_sees_its_attempts_finish() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router, other = await bench.session(), await bench.session()
        await router.submit("a", max_tokens=20)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        await router.call.write(drain())
        await other.call.write(drain())
        await eventually(lambda: bench.worker.state is State.DRAINING)
        described = await bench.stub.Describe(pb.DescribeRequest())
        assert (described.state, described.reason) == (pb.WORKER_STATE_DRAINING, "new disk")
        assert 50 < described.drain_left_s <= 60
        bench.worker.check_health()
        outputs = (await router.outputs_of("a"))["a"]
        assert outputs[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert await asyncio.wait_for(bench.worker.drained(), 5) == "new disk"


async def test_at_the_deadline_each_router_is_told_to_go_on_elsewhere_and_the_engine_is_empty() -> None:
    async with Bench(step_s=0.02).running() as bench:
        routers = [await bench.session(), await bench.session()]
        for number, router in enumerate(routers):
            await router.submit(f"a{number}", max_tokens=10_000)
        await eventually(lambda: len(bench.worker.attempts) == 2)
        await routers[0].call.write(drain(deadline_s=0.2))
        assert [await moved(router, f"a{number}") for number, router in enumerate(routers)] == [True, True]
        assert bench.idle
        assert bench.worker.attempts.outcomes == {"moved": 2}
        await asyncio.wait_for(bench.worker.drained(), 5)


async def moved(router: Router, attempt_id: str) -> bool:
    """Whether it made some tokens, and was then moved."""
    *tokens, last = (await router.outputs_of(attempt_id))[attempt_id]
    return bool(tokens) and last.finish_reason == pb.FINISH_REASON_MOVED and not last.token_ids


async def test_a_worker_takes_work_again_when_its_drain_is_undone() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await router.call.write(drain())
        await eventually(lambda: bench.worker.state is State.DRAINING)
        await router.submit("late")
        assert (await router.outputs_of("a", "late", last="late"))["late"][-1].finish_reason == pb.FINISH_REASON_MOVED
        await router.call.write(drain(undo=True))
        await eventually(lambda: bench.worker.state is State.READY)
        await router.call.write(drain())  # by a router that has not heard of it
        await router.submit("b")
        assert (await router.outputs_of("a", "b", last="b"))["b"][-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert "a" in bench.worker.attempts


async def test_a_prefill_worker_waits_for_the_reader_of_its_blocks() -> None:
    async with Bench(Role.PREFILL).running() as bench:
        router = await bench.session()
        await router.submit("a", Leg.PREFILL)
        await router.outputs_of("a")
        await router.call.write(drain())
        gone = asyncio.create_task(bench.worker.drained())
        await eventually(lambda: bench.worker.state is State.DRAINING)
        await asyncio.wait({gone}, timeout=2 * LINGER_S)
        assert not gone.done()
        await router.call.write(pb.SessionRequest(release=pb.ReleaseLease(lease_id="lease-of-a")))
        await asyncio.wait_for(gone, 5)


async def test_a_worker_whose_engine_dies_while_it_drains_has_failed() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await router.call.write(drain())
        await eventually(lambda: bench.worker.state is State.DRAINING)
        bench.engine.fail("power cut")
        assert not await asyncio.wait_for(bench.worker.drain(60.0), 5)
        assert bench.worker.state is State.FAILED


async def test_a_router_that_does_not_read_holds_a_move_up_for_a_moment_only() -> None:
    async with Bench(step_s=0.0, max_running=64).running() as bench:
        deaf = await bench.session()
        for number in range(64):
            await deaf.submit(f"s{number}", max_tokens=100_000)
        await eventually(lambda: len(bench.worker.attempts) > 0)
        await deaf.call.write(drain(deadline_s=0.0))
        await asyncio.wait_for(bench.worker.drained(), 10)
        assert bench.idle


class Stuck:
    """Makes one call of an engine never return; notes that it was made."""

    def __init__(self, engine: object, method: str) -> None:
        self.reached = asyncio.Event()
        setattr(engine, method, self._wait)

    async def _wait(self, *args: object) -> None:
        self.reached.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("method", ["abort", "stats"])
async def test_an_engine_that_does_not_answer_holds_a_drain_up_no_longer_than_a_call_may_take(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.worker._ENGINE_CALL_S", 0.2)
    monkeypatch.setattr("cluster.engine_counters._CALL_S", 0.2)
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        original = getattr(bench.engine, method)
        Stuck(bench.engine, method)
        await router.call.write(drain(deadline_s=0.1))
        assert await moved(router, "a")
        await asyncio.wait_for(bench.worker.drained(), 10)
        setattr(bench.engine, method, original)
        await bench.engine.abort(["a"])


async def test_whoever_stops_waiting_for_a_drain_does_not_stop_the_drain() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        stopping = asyncio.create_task(bench.worker.drain(0.5))
        await eventually(lambda: bench.worker.state is State.DRAINING)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        assert await moved(router, "a")
        assert not await asyncio.wait_for(bench.worker.drain(60.0), 5)
        assert bench.idle


async def test_closing_ends_a_drain_and_whoever_waits_for_it() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        stopping = asyncio.create_task(bench.worker.drain(60.0))
        await eventually(lambda: bench.worker.state is State.DRAINING)
        await bench.worker.close()
        assert not await asyncio.wait_for(stopping, 5)
        await eventually(lambda: not len(bench.worker.attempts))


async def test_an_engine_that_stalls_while_it_drains_loses_its_attempts_long_before_the_deadline() -> None:
    async with Bench(stall_after_s=0.2, step_s=30.0).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        await router.call.write(drain(deadline_s=600.0))
        (last,) = (await router.outputs_of("a"))["a"]
        assert last.finish_reason == pb.FINISH_REASON_MOVED
        assert "no engine step" in last.error
        await asyncio.wait_for(bench.worker.drained(), 5)
