"""`VllmEngine` on the real engine with the demo model: legs, sampling parameters, failure and end."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio

from cluster.block_hashes import chain_seed, extend_chain
from cluster.config import EngineConfig, ModelConfig
from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, Sampling
from cluster.errors import EngineFailed, InvalidRequest
from cluster.vllm_environment import prepare_environment
from cluster.vllm_events import EventSockets

if TYPE_CHECKING:
    from cluster.vllm_engine import VllmEngine

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


def engine_config(**changes: Any) -> EngineConfig:
    values: dict[str, Any] = {"kv_cache_mib": 64, "options": {"enforce_eager": True}} | changes
    return EngineConfig(**values)


def new_engine(path: Path | str, events: Path | None = None, **changes: Any) -> VllmEngine:
    model, engine = ModelConfig(path=str(path), max_model_len=1024, dtype="float32"), engine_config(**changes)
    prepare_environment(model, engine)  # before vllm is imported
    from cluster.vllm_core import VllmSpec
    from cluster.vllm_engine import VllmEngine

    sockets = None if events is None else EventSockets(events)
    return VllmEngine(VllmSpec(model, engine, engine.options, events=sockets))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(demo_model: Path) -> AsyncIterator[VllmEngine]:
    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
        engine = new_engine(demo_model, Path(folder))
        await engine.start()
        yield engine
        await engine.close()


def request(
    attempt_id: str, leg: Leg = Leg.WHOLE, max_tokens: int = 8, prompt: int = 40, **params: object
) -> EngineRequest:
    from vllm import SamplingParams

    from cluster.vllm_params import encode_params

    sampling = {"temperature": 0.0, "ignore_eos": True} | params
    return EngineRequest(
        attempt_id,
        leg,
        [(7 * i) % 300 + 5 for i in range(prompt)],
        Sampling(max_tokens, logprobs=sampling.get("logprobs")),  # type: ignore[arg-type]
        encode_params(SamplingParams(**sampling)),
    )


async def finish(engine: VllmEngine, *attempt_ids: str) -> dict[str, list[EngineOutput]]:
    open_ids = set(attempt_ids)
    outputs: dict[str, list[EngineOutput]] = {attempt_id: [] for attempt_id in attempt_ids}
    async with asyncio.timeout(60):
        while open_ids:
            for output in await engine.step():
                outputs[output.attempt_id].append(output)
                if output.finish_reason is not None:
                    open_ids.remove(output.attempt_id)
    return outputs


async def step_for_ever(engine: VllmEngine) -> None:
    while True:
        await engine.step()


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_a_whole_leg_yields_max_tokens_and_tells_where_its_prompt_came_from(engine: VllmEngine) -> None:
    await engine.submit(request("w1", prompt=70))
    outputs = (await finish(engine, "w1"))["w1"]
    assert len(tokens(outputs)) == 8
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert outputs[0].origin is not None
    assert (outputs[0].origin.prompt_tokens, outputs[0].origin.pulled_tokens) == (70, 0)
    await engine.submit(request("w2", prompt=70))
    again = (await finish(engine, "w2"))["w2"]
    assert tokens(again) == tokens(outputs)
    assert again[0].origin is not None
    assert again[0].origin.cached_tokens == 64


async def test_a_prefill_leg_gives_one_token_whatever_the_parameters_say(engine: VllmEngine) -> None:
    await engine.submit(request("p1", Leg.PREFILL, max_tokens=50, min_tokens=10))
    outputs = (await finish(engine, "p1"))["p1"]
    assert len(tokens(outputs)) == 1
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_sampling_parameters_survive_the_way(engine: VllmEngine) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(choice=["yes", "no"])
    grammar._backend = "xgrammar"
    await engine.submit(request("s1", max_tokens=6, temperature=1.0, seed=5, logprobs=2))
    await engine.submit(request("s2", max_tokens=6, temperature=1.0, seed=5))
    await engine.submit(request("s3", max_tokens=6, temperature=1.0, seed=6))
    await engine.submit(request("s4", max_tokens=9, structured_outputs=grammar, ignore_eos=False))
    await engine.submit(request("s5", max_tokens=6, allowed_token_ids=[17]))
    done = await finish(engine, "s1", "s2", "s3", "s4", "s5")
    assert tokens(done["s1"]) == tokens(done["s2"]) != tokens(done["s3"])
    logprobs = [at for output in done["s1"] for at in output.logprobs]
    assert [at.token_ids[0] for at in logprobs] == tokens(done["s1"])
    assert all(len(at.token_ids) == len(at.logprobs) == 3 and at.rank >= 1 for at in logprobs)
    assert not any(output.logprobs for output in done["s2"])
    assert len(tokens(done["s4"])) <= 4
    assert tokens(done["s5"]) == [17] * 6


@pytest.mark.parametrize(
    ("leg", "temperature", "refused"), [(Leg.WHOLE, 1.0, True), (Leg.WHOLE, 0.0, False), (Leg.PREFILL, 1.0, False)]
)
async def test_an_engine_that_cuts_prompts_into_chunks_on_a_cpu_refuses_seeded_draws(
    leg: Leg, temperature: float, refused: bool
) -> None:
    from cluster.vllm_messages import check_seed, to_core_request

    seeded = to_core_request(request("s", leg, temperature=temperature, seed=5))
    if refused:
        with pytest.raises(InvalidRequest, match="enable_chunked_prefill"):
            check_seed(seeded)
    else:
        check_seed(seeded)


async def test_an_aborted_attempt_gives_nothing_more_and_frees_its_blocks(engine: VllmEngine) -> None:
    await engine.submit(request("a1", max_tokens=900))
    while not any(output.attempt_id == "a1" for output in await engine.step()):
        pass
    await engine.abort(["a1", "unknown"])
    await engine.submit(request("a2", max_tokens=2))
    await finish(engine, "a2")  # would fail on an output of a1
    async with asyncio.timeout(30):
        while (await engine.stats()).running:
            await engine.step()
    assert (await engine.stats()).kv_usage == 0.0


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"prompt": 1024}, "leaves no room for output"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
async def test_what_would_break_the_engine_is_refused(engine, bad: dict[str, int], complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidRequest, match=complaint):
        await engine.submit(request("bad", **bad))  # type: ignore[arg-type]


async def test_a_token_outside_the_vocabulary_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(InvalidRequest, match="outside the model's vocabulary"):
        await engine.submit(EngineRequest("bad", Leg.WHOLE, [10**6], Sampling(1)))


async def test_parameters_of_another_format_are_refused(engine: VllmEngine) -> None:
    with pytest.raises(InvalidRequest, match="engine_params"):
        await engine.submit(EngineRequest("bad", Leg.WHOLE, [1], Sampling(1), b"\x93"))


async def test_the_blocks_of_a_prompt_are_told_under_the_hashes_that_everybody_computes(engine: VllmEngine) -> None:
    asked = replace(request("b1", max_tokens=1, prompt=200), cache_salt="tenant")
    wanted = set(extend_chain(chain_seed("demo", "", "tenant"), asked.prompt_token_ids, 32))
    await engine.submit(asked)
    await finish(engine, "b1")
    told: set[int] = set()
    async with asyncio.timeout(10):
        while not told >= wanted:
            told.update((await engine.block_changes()).stored)


async def test_an_idle_engine_answers_that_its_loop_turns(engine: VllmEngine) -> None:
    async with asyncio.timeout(10):
        await engine.answer()


async def test_a_client_cannot_make_the_engine_tell_its_blocks_twice() -> None:
    from cluster.vllm_messages import to_core_request

    asked = to_core_request(request("m1", extra_args={"kv_cache_report_mode": "full", "theirs": 1}))
    assert asked.sampling_params is not None
    assert asked.sampling_params.extra_args == {"theirs": 1}


async def test_a_killed_engine_core_is_noticed_at_once_and_closing_leaves_no_process(demo_model: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    engine = new_engine(demo_model)
    await engine.start()
    await engine.submit(request("k1", max_tokens=900))
    await engine.step()
    core = next(child for child in set(psutil.Process().children()) - before if "EngineCore" in child.name())
    os.kill(core.pid, signal.SIGKILL)
    with pytest.raises(EngineFailed, match="signal 9"):
        await asyncio.wait_for(step_for_ever(engine), 5)
    with pytest.raises(EngineFailed):
        await engine.submit(request("k2"))
    with pytest.raises(EngineFailed):
        await engine.stats()
    await engine.close()
    await engine.close()
    assert not [child for child in set(psutil.Process().children(recursive=True)) - before if "Engine" in child.name()]


async def test_a_model_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    engine = new_engine(tmp_path / "no-such-model")
    with pytest.raises(EngineFailed, match="no-such-model does not exist"):
        await engine.start()
    await engine.close()


async def test_an_engine_core_that_cannot_start_tells_why_in_its_own_words(demo_model: Path) -> None:
    engine = new_engine(
        demo_model, kv_cache_mib=16, options={"max_num_batched_tokens": 64, "kv_cache_dtype": "nonsense"}
    )
    with pytest.raises(EngineFailed, match="nonsense"):
        await engine.start()
    await engine.close()


async def test_a_start_past_its_deadline_leaves_no_process(demo_model: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    engine = new_engine(demo_model, start_deadline_s=4.0)
    with pytest.raises(EngineFailed, match="not ready after 4 s"):
        await engine.start()
    assert not [child for child in set(psutil.Process().children(recursive=True)) - before if "Engine" in child.name()]


async def test_prefixes_are_forgotten_only_while_no_block_is_in_use(engine: VllmEngine) -> None:
    await engine.submit(request("f1", max_tokens=400, prompt=100))
    while not any(output.attempt_id == "f1" for output in await engine.step()):
        pass
    assert not await engine.forget_prefixes()
    await engine.abort(["f1"])
    async with asyncio.timeout(30):
        while (await engine.stats()).running:
            await engine.step()
    assert await engine.forget_prefixes()
    await engine.submit(request("f2", prompt=100))
    origin = (await finish(engine, "f2"))["f2"][0].origin
    assert origin is not None
    assert origin.cached_tokens == 0
