"""A prefetch at a worker: it computes nothing there, and its pace is that of another engine."""

from __future__ import annotations

from cluster.engine import EngineRequest, Leg, PrefillInProgress, Role, Sampling
from cluster.wire import request_to_wire
from cluster.worker import State
from protos.baton.v1 import worker_pb2 as pb
from tests.cluster.worker_bench import Bench
from tests.waiting import eventually


async def test_a_prefetch_is_silent_for_as_long_as_its_prefill_runs_and_is_no_prompt_in_the_queue() -> None:
    async with Bench(stall_after_s=0.05).running() as bench:
        bench.engine.submit = accept  # type: ignore[method-assign]
        router = await bench.session()
        request = EngineRequest("a", Leg.PREFETCH, [5] * 40, Sampling(1), follow=PrefillInProgress("there:1", 1, "p"))
        await router.call.write(pb.SessionRequest(submit=request_to_wire(request)))
        await eventually(lambda: "a" in bench.worker.attempts)
        looks = bench.clock.looks
        await eventually(lambda: bench.clock.looks > looks + 5)
        assert bench.worker.state is State.READY
        assert bench.worker.load().queued_prefill_tokens == 0
        await router.abort("a")
        await eventually(lambda: bench.idle)


async def test_a_prefill_worker_prefetches_nothing() -> None:
    async with Bench(Role.PREFILL).running() as bench:
        router = await bench.session()
        request = EngineRequest("a", Leg.PREFETCH, [5] * 40, Sampling(1), follow=PrefillInProgress("there:1", 1, "p"))
        await router.call.write(pb.SessionRequest(submit=request_to_wire(request)))
        assert "does not run the prefetch leg" in (await router.outputs_of("a"))["a"][-1].error


async def accept(request: EngineRequest) -> None:
    """An engine that takes a request and has nothing to say of it yet."""
