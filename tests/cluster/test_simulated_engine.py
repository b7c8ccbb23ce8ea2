"""The simulated engine: deterministic outputs, real blocks, timing, hand-off and cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.block_hashes import chain_seed, extend_chain
from cluster.clock import VirtualClock
from cluster.config import EngineConfig, ModelConfig, SimulatedTiming
from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PrefillInProgress, Sampling
from cluster.errors import EngineFailed, InvalidRequest
from cluster.simulated_batch import next_token
from cluster.simulated_engine import SimulatedEngine
from tests.cluster.handoff_in_memory import MemoryHandoff

PROMPT = [7 * i % 97 for i in range(100)]


class Bench:
    """Engines on one virtual clock that a background task moves."""

    def __init__(self, **timing: float) -> None:
        self.clock = VirtualClock()
        self.shared: dict[str, MemoryHandoff] = {}
        self.timing = SimulatedTiming(**timing)  # type: ignore[arg-type]

    async def engine(self, handoff: bool = True) -> tuple[SimulatedEngine, MemoryHandoff]:
        config = EngineConfig(kind="simulated", block_size=16, simulated=self.timing)
        line = MemoryHandoff(self.shared)
        engine = SimulatedEngine(ModelConfig(path="none"), config, self.clock, line if handoff else None)
        await engine.start()
        return engine, line

    async def run(self, engine: SimulatedEngine, until: Callable[[list[EngineOutput]], bool]) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        while not until(outputs):
            step = asyncio.create_task(engine.step())
            while not step.done():
                await self.clock.advance(0.001)
            outputs += step.result()
        return outputs

    async def finish(self, engine: SimulatedEngine, *requests: EngineRequest) -> dict[str, list[EngineOutput]]:
        for request in requests:
            await engine.submit(request)
        outputs = await self.run(engine, lambda seen: sum(o.finish_reason is not None for o in seen) == len(requests))
        return {r.attempt_id: [o for o in outputs if o.attempt_id == r.attempt_id] for r in requests}


def ask(attempt_id: str, leg: Leg = Leg.WHOLE, prompt: list[int] = PROMPT, **sampling: object) -> EngineRequest:
    ticket = sampling.pop("ticket", b"")
    return EngineRequest(attempt_id, leg, prompt, Sampling(**({"max_tokens": 5} | sampling)), ticket=ticket)  # type: ignore[arg-type]


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def expected(prompt: list[int], count: int) -> list[int]:
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(history, 4096))
    return history[len(prompt) :]


async def test_output_is_a_function_of_the_history_and_ends_at_max_tokens() -> None:
    bench = Bench()
    engine, _ = await bench.engine()
    outputs = (await bench.finish(engine, ask("a")))["a"]
    assert tokens(outputs) == expected(PROMPT, 5)
    assert [o.finish_reason for o in outputs] == [None] * 4 + [FinishReason.LENGTH]
    assert outputs[0].origin is not None
    assert (outputs[0].origin.prompt_tokens, outputs[0].origin.cached_tokens) == (100, 0)
    assert engine.batch.pool.used == 0


async def test_a_stop_token_ends_the_output_and_is_named() -> None:
    bench = Bench()
    engine, _ = await bench.engine()
    third = expected(PROMPT, 3)[-1]
    outputs = (await bench.finish(engine, ask("a", stop_token_ids=(third,))))["a"]
    assert tokens(outputs)[-1] == third
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == (FinishReason.STOP, third)


async def test_logprobs_come_when_asked_for_with_the_sampled_token_first() -> None:
    bench = Bench()
    engine, _ = await bench.engine()
    done = await bench.finish(engine, ask("a", logprobs=3), ask("b"))
    for output in done["a"]:
        (at,) = output.logprobs
        assert at.token_ids[0] == output.token_ids[0]
        assert len(at.token_ids) == len(at.logprobs) == 4
        assert all(value < 0 for value in at.logprobs)
    assert not any(output.logprobs for output in done["b"])


async def test_a_step_takes_its_own_time_and_that_of_the_prompt_tokens_not_in_the_cache() -> None:
    bench = Bench(step_s=0.01, prefill_token_s=0.001)
    engine, _ = await bench.engine()
    await bench.finish(engine, ask("cold", max_tokens=1))
    cold = bench.clock.now()
    assert cold == pytest.approx(0.11, abs=0.002)
    again = (await bench.finish(engine, ask("warm", max_tokens=1)))["warm"]
    assert again[0].origin is not None
    assert again[0].origin.cached_tokens == 96
    assert bench.clock.now() - cold == pytest.approx(0.014, abs=0.002)


async def test_another_salt_finds_nothing_in_the_cache() -> None:
    bench = Bench()
    engine, _ = await bench.engine()
    await bench.finish(engine, ask("a"))
    request = EngineRequest("b", Leg.WHOLE, PROMPT, Sampling(1), cache_salt="tenant")
    (output,) = (await bench.finish(engine, request))["b"]
    assert output.origin is not None
    assert output.origin.cached_tokens == 0


async def test_a_finished_prefill_keeps_its_blocks_until_its_lease_ends() -> None:
    bench = Bench(num_blocks=9)
    prefill, line = await bench.engine()
    (output,) = (await bench.finish(prefill, ask("p", Leg.PREFILL, max_tokens=50)))["p"]
    assert (output.finish_reason, len(output.token_ids)) == (FinishReason.LENGTH, 1)
    assert output.ticket
    assert (await prefill.stats()).pinned_blocks == prefill.batch.pool.used == 7
    await prefill.submit(ask("next", prompt=[1] * 60, max_tokens=2))  # 4 blocks: 2 are left
    stepping = asyncio.create_task(prefill.step())
    await bench.clock.advance(1.0)
    assert not stepping.done()
    assert prefill.batch.waiting == 1
    await line.release("lease-of-p")
    await bench.clock.advance(1.0)
    assert len(await stepping) == 1
    assert (await prefill.stats()).pinned_blocks == 0


@pytest.mark.parametrize("seeded", [True, False], ids=["first token kept", "first token sampled again"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 100])
async def test_decode_continues_where_prefill_ended_without_computing_the_prompt(length: int, seeded: bool) -> None:
    bench = Bench()
    (prefill, _), (decode, _) = await bench.engine(), await bench.engine()
    prompt = PROMPT[:length]
    (first,) = (await bench.finish(prefill, ask("p", Leg.PREFILL, prompt)))["p"]
    history = prompt + first.token_ids if seeded else prompt
    outputs = (await bench.finish(decode, ask("d", Leg.DECODE, history, ticket=first.ticket)))["d"]
    assert tokens(outputs) == expected(history, 5)
    assert outputs[0].origin is not None
    assert outputs[0].origin.pulled_tokens == (length if seeded else length - 1)
    assert (await decode.stats()).recomputed_requests == 0
    assert prefill.batch.pool.used == decode.batch.pool.used == 0


async def test_decode_pulls_only_the_blocks_that_it_lacks() -> None:
    bench = Bench()
    (prefill, _), (decode, line) = await bench.engine(), await bench.engine()
    await bench.finish(decode, ask("warm", prompt=PROMPT[:64]))
    (first,) = (await bench.finish(prefill, ask("p", Leg.PREFILL)))["p"]
    outputs = (await bench.finish(decode, ask("d", Leg.DECODE, PROMPT + first.token_ids, ticket=first.ticket)))["d"]
    assert line.pulled == [3]
    assert outputs[0].origin is not None
    assert (outputs[0].origin.cached_tokens, outputs[0].origin.pulled_tokens) == (64, 36)


async def test_a_prompt_that_is_all_in_the_cache_ends_its_lease_all_the_same() -> None:
    bench = Bench()
    (prefill, _), (decode, line) = await bench.engine(), await bench.engine()
    prompt = PROMPT[:64]
    await bench.finish(decode, ask("warm", prompt=[*prompt, 1]))
    (first,) = (await bench.finish(prefill, ask("p", Leg.PREFILL, prompt)))["p"]
    await bench.finish(decode, ask("d", Leg.DECODE, prompt + first.token_ids, ticket=first.ticket))
    assert line.pulled == [0]
    assert (await prefill.stats()).leases == 0


async def test_a_failed_pull_is_computed_here_and_counted() -> None:
    bench = Bench()
    (prefill, _), (decode, line) = await bench.engine(), await bench.engine()
    (first,) = (await bench.finish(prefill, ask("p", Leg.PREFILL)))["p"]
    line.failing = True
    history = PROMPT + first.token_ids
    outputs = (await bench.finish(decode, ask("d", Leg.DECODE, history, ticket=first.ticket)))["d"]
    assert tokens(outputs) == expected(history, 5)
    assert outputs[0].origin is not None
    assert outputs[0].origin.pulled_tokens == 0
    assert (await decode.stats()).recomputed_requests == 1


async def test_an_attempt_aborted_while_it_pulls_leaves_nothing() -> None:
    bench = Bench()
    (prefill, _), (decode, line) = await bench.engine(), await bench.engine()
    (first,) = (await bench.finish(prefill, ask("p", Leg.PREFILL)))["p"]
    line.held_back = asyncio.Event()
    await decode.submit(ask("d", Leg.DECODE, PROMPT + first.token_ids, ticket=first.ticket))
    stepping = asyncio.create_task(decode.step())
    await bench.clock.advance(0.1)
    assert decode.batch.pool.used
    await decode.abort(["d", "unknown"])
    line.held_back.set()
    await bench.clock.advance(0.1)
    assert (decode.batch.pool.used, decode.batch.running, decode.batch.waiting) == (0, 0, 0)
    assert not stepping.done()
    stepping.cancel()


@pytest.mark.parametrize("moment", ["waiting", "in the step"])
async def test_an_aborted_attempt_gives_no_output_and_frees_its_blocks(moment: str) -> None:
    bench = Bench(max_running=1)
    engine, _ = await bench.engine()
    await engine.submit(ask("a", max_tokens=50))
    await engine.submit(ask("b", max_tokens=2))
    stepping = asyncio.create_task(engine.step())
    await asyncio.sleep(0)
    await engine.abort(["b" if moment == "waiting" else "a"])
    await bench.clock.advance(1.0)
    survivor = "a" if moment == "waiting" else "b"
    assert {output.attempt_id for output in await stepping} == {survivor}
    await engine.abort([survivor])
    assert engine.batch.pool.used == 0


async def test_when_blocks_run_out_the_youngest_gives_way_and_both_outputs_stay_right() -> None:
    bench = Bench(num_blocks=6)
    engine, _ = await bench.engine()
    first, second = ask("a", prompt=[1] * 30, max_tokens=40), ask("b", prompt=[2] * 30, max_tokens=40)
    done = await bench.finish(engine, first, second)
    assert tokens(done["a"]) == expected([1] * 30, 40)
    assert tokens(done["b"]) == expected([2] * 30, 40)
    assert engine.batch.pool.used == 0
    engine.batch.pool.check_integrity()


async def test_no_more_than_max_running_move_at_once_and_priority_goes_first() -> None:
    bench = Bench(max_running=2)
    engine, _ = await bench.engine()
    for name, priority in (("a", 0), ("b", 5), ("c", -1)):
        await engine.submit(EngineRequest(name, Leg.WHOLE, [1, 2], Sampling(1), priority=priority))
    first = await bench.run(engine, lambda seen: bool(seen))
    assert {output.attempt_id for output in first} == {"c", "a"}


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (ask("x", max_tokens=0), "max_tokens must be at least 1"),
        (ask("x", prompt=[1] * 200_000), "leaves no room"),
        (ask("x", max_tokens=400_000), "never fit"),
        (ask("x", Leg.DECODE, ticket=b"t:1"), "no hand-off"),
    ],
)
async def test_what_can_never_finish_is_refused(request_: EngineRequest, complaint: str) -> None:
    engine, _ = await Bench().engine(handoff=False)
    with pytest.raises(InvalidRequest, match=complaint):
        await engine.submit(request_)


async def test_a_second_attempt_of_the_same_name_is_refused() -> None:
    engine, _ = await Bench().engine()
    await engine.submit(ask("a"))
    with pytest.raises(InvalidRequest, match="already here"):
        await engine.submit(ask("a"))


async def test_a_prefetch_ends_at_once_and_an_aborted_one_says_nothing() -> None:
    bench = Bench()
    engine, _ = await bench.engine()
    follow = PrefillInProgress("there:1", 1, "r/prefill1")
    for name in ("gone", "there"):
        await engine.submit(EngineRequest(name, Leg.PREFETCH, PROMPT, Sampling(1), follow=follow))
    await engine.abort(["gone"])
    outputs = await bench.run(engine, lambda seen: len(seen) == 1)
    assert outputs == [EngineOutput("there", [], finish_reason=FinishReason.LENGTH)]
    assert engine.batch.pool.used == 0


async def test_a_failed_engine_raises_from_every_call_and_from_the_step_under_way() -> None:
    bench = Bench()
    engine, _ = await bench.engine()
    stepping = asyncio.create_task(engine.step())
    await asyncio.sleep(0)
    engine.fail("power cut")
    for call in (stepping, engine.submit(ask("a")), engine.abort(["a"]), engine.stats(), engine.release("x")):
        with pytest.raises(EngineFailed, match="power cut"):
            await call


def test_it_starts_without_importing_vllm_or_ray() -> None:
    program = "import sys, cluster.simulated_engine; assert not {'vllm', 'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


async def test_the_blocks_of_a_prompt_are_told_under_the_hashes_that_everybody_computes() -> None:
    bench = Bench(num_blocks=12)
    engine, _ = await bench.engine(handoff=False)
    prompts = [[salt, *PROMPT] for salt in range(3)]
    held: set[int] = set()
    for number, prompt in enumerate(prompts):
        request = replace(ask(f"a{number}", prompt=prompt), cache_salt="tenant")
        await bench.finish(engine, request)
        delta = await engine.block_changes()
        held = (held - set(delta.removed)) | set(delta.stored)
        assert held == engine.batch.pool.contents
        assert held >= set(extend_chain(chain_seed("demo", "", "tenant"), prompt, 16))
    assert not held & set(extend_chain(chain_seed("demo", "", "tenant"), prompts[0], 16))


async def test_waiting_for_blocks_ends_with_the_engine() -> None:
    engine, _ = await Bench().engine()
    waiting = asyncio.create_task(engine.block_changes())
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        await waiting
