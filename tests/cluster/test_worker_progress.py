"""A worker that watches its own engine: what counts as a stall, what does not, and how it comes back from one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster.engine import EngineRequest, EngineStats, Leg, Role
from cluster.errors import InvalidRequest, WorkerLost
from cluster.worker import State
from protos.baton.v1 import worker_pb2 as pb
from tests.cluster.worker_bench import Bench, Router
from tests.waiting import eventually, running_time


async def looked_at(bench: Bench, times: int = 5) -> None:
    before = bench.clock.looks
    await eventually(lambda: bench.clock.looks > before + times)


async def test_an_engine_that_does_not_move_while_it_has_work_is_stalled_until_it_moves() -> None:
    async with Bench(stall_after_s=0.1, step_s=0.8).running() as bench:
        bench.worker.check_health()
        router = await bench.session()
        await router.submit("a", max_tokens=1)
        await eventually(lambda: bench.worker.state is State.STALLED)
        with pytest.raises(WorkerLost, match="stalled: no engine step"):
            bench.worker.check_health()
        await router.submit("b")
        refused = (await router.outputs_of("b"))["b"][-1]
        assert "is stalled" in refused.error
        assert refused.finish_reason == pb.FINISH_REASON_MOVED
        await router.outputs_of("a")
        assert bench.worker.state is State.READY


async def test_an_idle_engine_is_not_stalled() -> None:
    async with Bench(stall_after_s=0.01).running() as bench:
        router = await bench.session()
        await router.submit("a")
        await router.outputs_of("a")
        before = bench.clock.looks
        await eventually(lambda: bench.clock.looks > before + 5)
        assert bench.worker.state is State.READY


async def test_a_stalled_worker_whose_work_was_moved_is_ready_again_once_its_engine_turns() -> None:
    async with Bench(stall_after_s=0.1, step_s=0.8).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=5)
        await eventually(lambda: bench.worker.state is State.STALLED)
        await router.abort("a")
        await eventually(lambda: bench.idle)
        await eventually(lambda: bench.worker.state is State.READY)
        await router.submit("b", max_tokens=1)
        await router.outputs_of("b")


async def test_a_stall_is_noticed_when_it_is_one_however_seldom_the_worker_looks() -> None:
    bench = Bench(stall_after_s=1.2, step_s=300.0, look_every_s=1.0)
    async with bench.running():
        router = await bench.session()
        await router.submit("a", max_tokens=1)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        begin = bench.clock.now()
        async with running_time() as ran_s:
            await eventually(lambda: bench.worker.state is State.STALLED)
            assert bench.clock.now() - begin >= 1.19
            assert ran_s() < 1.8, "the next look by the clock alone would come at 2 s"


async def test_an_engine_that_does_not_even_count_is_found_no_later() -> None:
    """As one whose process was stopped: nothing that waits for it may keep the worker from looking."""
    async with Bench(stall_after_s=0.3, step_s=300.0).running() as bench:

        async def never() -> EngineStats:
            await asyncio.Event().wait()
            raise AssertionError

        router = await bench.session()
        bench.engine.stats = never  # type: ignore[method-assign]
        await router.submit("a", max_tokens=1)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        async with running_time() as ran_s:
            await eventually(lambda: bench.worker.state is State.STALLED)
            assert ran_s() < 1.9, "it waited until a call of the engine may take no longer"


async def test_a_request_that_the_engine_refuses_is_owed_no_step() -> None:
    async with Bench(stall_after_s=0.05).running() as bench:

        async def refuse(request: EngineRequest) -> None:
            raise InvalidRequest("never fits")

        asked: list[bool] = []

        async def answer() -> None:
            asked.append(True)

        bench.engine.submit, bench.engine.answer = refuse, answer  # type: ignore[method-assign]
        router = await bench.session()
        await router.submit("a")
        assert (await router.outputs_of("a"))["a"][-1].finish_reason == pb.FINISH_REASON_ERROR
        await looked_at(bench, 20)
        assert bench.worker.state is State.READY
        assert not asked, "an idle engine is left alone"


async def decoding(bench: Bench, held_back: asyncio.Event) -> Router:
    """A router whose one attempt waits for its blocks."""
    bench.line.held_back = held_back
    bench.line.shared["lease"] = bench.line
    router = await bench.session()
    await router.submit("a", Leg.DECODE, max_tokens=2, ticket=b"lease:40")
    await eventually(lambda: bench.engine.batch.running == 1)
    return router


async def test_an_engine_that_only_waits_for_blocks_of_another_worker_is_not_stalled() -> None:
    async with Bench(Role.DECODE, stall_after_s=0.05).running() as bench:
        arrive = asyncio.Event()
        router = await decoding(bench, arrive)
        await looked_at(bench, 20)
        assert bench.worker.state is State.READY
        arrive.set()
        assert len((await router.outputs_of("a"))["a"]) == 2


async def test_an_engine_whose_loop_does_not_turn_is_stalled_whatever_it_waits_for() -> None:
    async with Bench(Role.DECODE, stall_after_s=0.05).running() as bench:

        async def never() -> None:
            await asyncio.Event().wait()

        bench.engine.answer = never  # type: ignore[method-assign]
        await decoding(bench, asyncio.Event())
        await eventually(lambda: bench.worker.state is State.STALLED)


async def test_a_worker_that_did_not_run_itself_blames_no_engine() -> None:
    """As after SIGSTOP and SIGCONT: the clock has moved and nothing else."""
    async with Bench(stall_after_s=5.0, step_s=1000.0).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=1)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        bench.clock.missed_s += 60.0
        await looked_at(bench)
        assert bench.worker.state is State.READY


async def test_a_release_has_an_idle_engine_counted_again() -> None:
    """Which makes it take the blocks back: it takes no step by itself, and had nothing to count before."""
    async with Bench(Role.PREFILL).running() as bench:
        await looked_at(bench)  # whatever the start had to count
        counted = asyncio.Event()
        count = bench.engine.stats

        async def stats() -> EngineStats:
            counted.set()
            return await count()

        bench.engine.stats = stats  # type: ignore[method-assign]
        await looked_at(bench)
        assert not counted.is_set()
        await bench.worker.release("a lease")
        await asyncio.wait_for(counted.wait(), 5)


async def test_a_worker_in_a_long_step_is_linked_and_described_while_blocks_of_ended_leases_wait_for_it() -> None:
    async with Bench(Role.PREFILL).running() as bench:
        asked, stepped = asyncio.Event(), asyncio.Event()
        count = bench.engine.stats

        async def stats() -> EngineStats:
            return replace(await count(), pending_releases=0 if stepped.is_set() else 1)

        async def settle() -> None:
            asked.set()
            await stepped.wait()

        bench.engine.stats, bench.engine.settle = stats, settle  # type: ignore[method-assign]
        await bench.worker.release("a lease")
        await asyncio.wait_for(asked.wait(), 5)
        async with asyncio.timeout(5):
            await bench.session()
            described = await bench.stub.Describe(pb.DescribeRequest())
        assert described.state == pb.WORKER_STATE_READY
        stepped.set()
        await eventually(lambda: not bench.worker._counters.last.pending_releases)
