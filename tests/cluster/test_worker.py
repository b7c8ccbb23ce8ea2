"""A worker over real gRPC on loopback, with a simulated engine: what sessions may do, and every way they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import grpc
import pytest

from cluster.engine import Leg, Role
from cluster.errors import EngineFailed, WorkerLost
from cluster.simulated_engine import SimulatedEngine
from protos.baton.v1 import kv_pb2
from protos.baton.v1 import worker_pb2 as pb
from tests.cluster.handoff_in_memory import MemoryHandoff
from tests.cluster.worker_bench import EPOCH, Bench, Router
from tests.session import open_stream
from tests.waiting import eventually


async def test_a_session_begins_with_who_the_worker_is_and_streams_each_step() -> None:
    async with Bench().running() as bench:
        router = await bench.hello()
        welcome = (await router.read()).welcome.worker
        assert (welcome.role, welcome.epoch, welcome.state) == (pb.ROLE_DECODE, EPOCH, pb.WORKER_STATE_READY)
        assert (welcome.engine, welcome.block_size) == ("simulated", 32)
        await router.submit("a")
        outputs = (await router.outputs_of("a"))["a"]
        assert sum(len(output.token_ids) for output in outputs) == 3
        assert outputs[0].origin.prompt_tokens == 40
        assert outputs[-1].finish_reason == pb.FINISH_REASON_LENGTH


async def test_one_step_is_one_message_for_all_attempts_of_a_router_and_carries_the_load() -> None:
    async with Bench(step_s=0.05).running() as bench:
        first, second = await bench.session(), await bench.session()
        for router, attempt_id in ((first, "a"), (first, "b"), (second, "c")):
            await router.submit(attempt_id, max_tokens=5)
        await eventually(lambda: len(bench.worker.attempts) == 3)
        while len((reply := await first.read()).outputs.outputs) < 2:
            assert reply.outputs.outputs
        assert {output.attempt_id for output in reply.outputs.outputs} == {"a", "b"}
        assert reply.outputs.load.kv_usage > 0
        assert [output.attempt_id for output in (await second.read()).outputs.outputs] == ["c"]


async def test_queued_prefill_tokens_are_those_of_attempts_without_an_output() -> None:
    async with Bench(step_s=0.05, max_running=1).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=2)
        await router.submit("b", max_tokens=1)
        await eventually(lambda: bench.worker.load().queued_prefill_tokens == 80)
        await router.outputs_of("a", "b")
        assert bench.worker.load().queued_prefill_tokens == 0


async def test_a_prompt_that_was_computed_elsewhere_is_not_queued() -> None:
    async with Bench(step_s=0.2).running() as bench:
        bench.line.failing = True  # nobody has offered that lease
        router = await bench.session()
        await router.submit("a", Leg.DECODE, ticket=b"lease:40")
        await router.submit("refused", Leg.PREFILL)
        await router.outputs_of("refused")
        assert bench.worker.load().queued_prefill_tokens == 0
        await router.outputs_of("a")


@pytest.mark.parametrize(
    ("role", "leg", "runs"),
    [
        (Role.PREFILL, Leg.PREFILL, True),
        (Role.PREFILL, Leg.WHOLE, True),
        (Role.PREFILL, Leg.DECODE, False),
        (Role.DECODE, Leg.DECODE, True),
        (Role.DECODE, Leg.WHOLE, True),
        (Role.DECODE, Leg.PREFILL, False),
    ],
)
async def test_a_worker_runs_the_legs_of_its_role_only(role: Role, leg: Leg, runs: bool) -> None:
    async with Bench(role).running() as bench:
        bench.line.failing = True  # a decode leg computes its prompt again: here only who runs what matters
        router = await bench.session()
        await router.submit("a", leg, ticket=b"lease:40" if leg is Leg.DECODE else b"")
        last = (await router.outputs_of("a"))["a"][-1]
        assert (last.finish_reason != pb.FINISH_REASON_ERROR) is runs
        assert runs or f"does not run the {leg.value} leg" in last.error


async def test_a_prefill_leg_ends_with_its_ticket_and_a_release_frees_the_blocks() -> None:
    async with Bench(Role.PREFILL).running() as bench:
        router = await bench.session()
        await router.submit("a", Leg.PREFILL)
        (output,) = (await router.outputs_of("a"))["a"]
        assert output.ticket == b"lease-of-a:40"
        assert bench.engine.batch.pool.used == 2
        await router.call.write(pb.SessionRequest(release=pb.ReleaseLease(lease_id="lease-of-a")))
        await eventually(lambda: bench.idle)


async def test_a_stale_epoch_is_refused() -> None:
    async with Bench().running() as bench:
        code, reason = await (await bench.hello(epoch=6)).status()
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "epoch 6 is over" in reason


async def test_a_session_must_begin_with_hello() -> None:
    async with Bench().running() as bench:
        router = Router(open_stream(bench.stub))
        await router.submit("a")
        assert (await router.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_second_hello_ends_the_session() -> None:
    async with Bench().running() as bench:
        router = await bench.session()
        await router.call.write(pb.SessionRequest(hello=pb.Hello(router_id="r1", epoch=EPOCH)))
        assert (await router.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_bad_submission_fails_alone() -> None:
    async with Bench().running() as bench:
        router = await bench.session()
        await router.call.write(pb.SessionRequest(submit=pb.Submit(attempt_id="bad", leg=pb.LEG_WHOLE)))
        await router.submit("too-short", max_tokens=0)
        await router.submit("good")
        outputs = await router.outputs_of("bad", "too-short", "good")
        assert "needs an id and a prompt" in outputs["bad"][-1].error
        assert "max_tokens" in outputs["too-short"][-1].error
        assert outputs["good"][-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert dict((await bench.worker.describe()).counters.attempts_by_outcome) == {"refused": 2, "length": 1}


async def test_an_id_that_is_open_is_refused_to_another_router_and_stays_with_the_first() -> None:
    async with Bench(step_s=0.02).running() as bench:
        first, second = await bench.session(), await bench.session()
        await first.submit("a", max_tokens=20)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        await second.submit("a")
        (refusal,) = (await second.outputs_of("a"))["a"]
        assert "is open already" in refusal.error
        await second.abort("a")  # not its own
        assert (await first.outputs_of("a"))["a"][-1].finish_reason == pb.FINISH_REASON_LENGTH


async def test_an_aborted_attempt_says_nothing_more_and_frees_its_blocks() -> None:
    async with Bench().running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await router.read()
        await router.abort("a", "unknown")
        await eventually(lambda: bench.idle)
        assert bench.worker.attempts.outcomes == {"abort": 1}


@pytest.mark.parametrize("end", ["cancel", "half-close"])
async def test_a_session_that_ends_takes_its_attempts_with_it_and_no_others(end: str) -> None:
    async with Bench(step_s=0.02).running() as bench:  # nobody reads: not to be ended for that meanwhile
        first, second = await bench.session(), await bench.session()
        await first.submit("a", max_tokens=10_000)
        await second.submit("b", max_tokens=10_000)
        await eventually(lambda: len(bench.worker.attempts) == 2)
        if end == "cancel":
            first.call.cancel()
        else:
            await first.call.done_writing()
        await eventually(lambda: len(bench.worker.attempts) == 1)
        assert "b" in bench.worker.attempts
        await second.abort("b")
        await eventually(lambda: bench.idle)


async def test_a_router_that_does_not_read_is_ended_and_the_others_go_on() -> None:
    async with Bench(limit=20, step_s=0.0).running() as bench:
        slow, quick = await bench.session(), await bench.session()
        with contextlib.suppress(grpc.aio.AioRpcError):  # it may be ended before it has sent all
            for i in range(200):
                await slow.submit(f"s{i}", max_tokens=100_000)
        await eventually(lambda: bench.worker.attempts.outcomes.get("abort", 0) > 0 and bench.idle, within_s=20)
        await quick.submit("q")
        assert (await quick.outputs_of("q"))["q"][-1].finish_reason == pb.FINISH_REASON_LENGTH


async def test_a_dead_engine_fails_every_attempt_at_once_and_the_worker_says_why() -> None:
    async with Bench().running() as bench:
        first, second = await bench.session(), await bench.session()
        await first.submit("a", max_tokens=10_000)
        await second.submit("b", max_tokens=10_000)
        await asyncio.gather(first.read(), second.read())
        bench.engine.fail("power cut")
        for router, attempt_id in ((first, "a"), (second, "b")):
            last = (await router.outputs_of(attempt_id))[attempt_id][-1]
            assert (last.finish_reason, last.error) == (pb.FINISH_REASON_LOST, "power cut")
        described = await bench.stub.Describe(pb.DescribeRequest())
        assert (described.state, described.reason) == (pb.WORKER_STATE_FAILED, "power cut")
        assert described.load == pb.Load(), "what it had is gone"
        with pytest.raises(WorkerLost, match="failed: power cut"):
            bench.worker.check_health()
        await first.submit("late")
        assert "failed power cut" in (await first.outputs_of("late"))["late"][-1].error


async def test_draining_refuses_new_work_and_waits_for_attempts_and_leases() -> None:
    async with Bench(Role.PREFILL, step_s=0.05).running() as bench:
        router = await bench.session()
        await router.submit("a", Leg.PREFILL)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        draining = asyncio.create_task(bench.worker.drain(10.0))
        await router.outputs_of("a")
        await router.submit("late")
        refusal = (await router.outputs_of("late"))["late"][-1]
        assert (refusal.finish_reason, refusal.error) == (
            pb.FINISH_REASON_MOVED,
            "the worker drains: it is being stopped",
        )
        assert not draining.done()
        await bench.line.release("lease-of-a")
        assert await draining


async def test_draining_gives_up_at_its_deadline() -> None:
    async with Bench(Role.PREFILL).running() as bench:
        router = await bench.session()
        await router.submit("a", Leg.PREFILL)
        await router.outputs_of("a")
        assert not await bench.worker.drain(0.2)


async def test_closing_ends_the_sessions_with_a_reason() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=10_000)
        await router.read()
        closing = asyncio.create_task(bench.worker.close())
        code, reason = await router.status()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "is closing" in reason
        await closing
        await bench.worker.close()


async def test_an_engine_that_cannot_start_leaves_nothing_and_passes_on_why() -> None:
    bench = Bench()
    closed: list[bool] = []

    async def refuse() -> None:
        raise EngineFailed("no such model")

    async def note() -> None:
        closed.append(True)

    bench.engine.start, bench.engine.close = refuse, note  # type: ignore[method-assign, assignment]
    with pytest.raises(EngineFailed, match="no such model"):
        await bench.worker.start()
    assert closed


class HeldUp:
    """Makes one call of an engine wait until it is cancelled."""

    def __init__(self, engine: SimulatedEngine, method: str) -> None:
        self.reached = asyncio.Event()
        setattr(engine, method, self._wait)

    async def _wait(self, *args: object) -> None:
        self.reached.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("method", ["submit", "abort", "release"])
async def test_a_session_that_breaks_while_the_engine_holds_it_up_leaves_no_attempt(method: str) -> None:
    async with Bench().running() as bench:
        router = await bench.session()
        if method != "submit":
            await router.submit("a", max_tokens=10_000)
            await router.read()
        original = bench.engine.abort
        held = HeldUp(bench.engine, method)
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "submit": lambda: router.submit("b"),
            "abort": lambda: router.abort("a"),
            "release": lambda: router.call.write(pb.SessionRequest(release=pb.ReleaseLease(lease_id="x"))),
        }
        await actions[method]()
        await asyncio.wait_for(held.reached.wait(), 5)
        bench.engine.abort = original  # type: ignore[method-assign]
        router.call.cancel()
        await eventually(lambda: not len(bench.worker.attempts))


async def test_a_router_that_comes_again_has_nothing_left_of_its_old_session() -> None:
    """As after a link that was cut without a word: here nobody has noticed yet."""
    async with Bench().running() as bench:
        other, old = await bench.session(), await bench.session(router_id="cut off")
        await other.submit("kept", max_tokens=10_000)
        await old.submit("left", max_tokens=10_000)
        await asyncio.gather(other.read(), old.read())
        again = await bench.session(router_id="cut off")
        await eventually(lambda: "left" not in bench.worker.attempts)
        await eventually(lambda: len(bench.worker._sessions) == 2)
        assert "kept" in bench.worker.attempts
        await again.submit("new")
        await again.outputs_of("new")


class SignedHandoff(MemoryHandoff):
    """Its tickets are those of the wire."""

    def offer(self, attempt_id: str, num_tokens: int, block_ids: Sequence[int]) -> bytes:
        super().offer(attempt_id, num_tokens, block_ids)
        return kv_pb2.Ticket(lease_id=f"lease-of-{attempt_id}").SerializeToString()


async def test_the_ticket_of_a_prefill_that_finished_as_it_was_aborted_is_released() -> None:
    """Its blocks would else be pinned for as long as a lease lasts."""
    bench = Bench(Role.PREFILL, step_s=0.1)
    bench.line = bench.engine._handoff = SignedHandoff({})
    async with bench.running():
        router = await bench.session()
        await router.submit("a", Leg.PREFILL)
        await eventually(lambda: len(bench.worker.attempts) == 1)
        held = HeldUp(bench.engine, "abort")
        await router.abort("a")
        await asyncio.wait_for(held.reached.wait(), 5)
        await eventually(lambda: "lease-of-a" in bench.line.shared)
        await eventually(lambda: bench.idle)
        router.call.cancel()
