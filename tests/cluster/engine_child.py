"""vLLM's engine in a process of its own that steps when told and can be looked into: what its block pool really
holds."""

from __future__ import annotations

import asyncio
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.config import EngineConfig, ModelConfig
from cluster.vllm_environment import prepare_environment
from cluster.vllm_events import EventSockets

MODEL_NAME = "demo"
_START_S = 200.0
_ANSWER_S = 120.0


class EngineChild:
    """Commands are the public methods of `_Child`. `kv_cache_mib`: small enough for what a test wants to evict."""

    def __init__(self, model: Path, sockets: EventSockets, kv_cache_mib: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(there, model, sockets, kv_cache_mib), daemon=True)
        self._process.start()
        there.close()

    async def ready(self) -> None:
        await asyncio.to_thread(self._answer, _START_S)

    async def ask(self, command: str, *arguments: Any) -> Any:
        self._pipe.send((command, arguments))
        return await asyncio.to_thread(self._answer, _ANSWER_S)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answer(self, within_s: float) -> Any:
        assert self._pipe.poll(within_s), "the engine's process does not answer"
        outcome, value = self._pipe.recv()
        assert outcome == "ok", value
        return value


def _run(pipe: Connection, model: Path, sockets: EventSockets, kv_cache_mib: int) -> None:
    try:
        child = _Child(model, sockets, kv_cache_mib)
        pipe.send(("ok", None))
        while True:
            command, arguments = pipe.recv()
            pipe.send(("ok", getattr(child, command)(*arguments)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise


class _Child:
    def __init__(self, model: Path, sockets: EventSockets, kv_cache_mib: int) -> None:
        served = ModelConfig(path=str(model), served_name=MODEL_NAME, max_model_len=2048, dtype="float32")
        engine = EngineConfig(kv_cache_mib=kv_cache_mib, options={"enforce_eager": True})
        prepare_environment(served, engine)  # before vllm is imported
        from vllm import LLM

        from cluster.vllm_core import VllmSpec, engine_arguments

        arguments = engine_arguments(VllmSpec(served, engine, engine.options, events=sockets))
        del arguments["served_model_name"]
        self._llm = LLM(**arguments)
        core: Any = self._llm.llm_engine.engine_core
        self._pool: Any = core.engine_core.scheduler.kv_cache_manager.block_pool

    def num_blocks(self) -> int:
        return int(self._pool.num_gpu_blocks)

    def generate(self, prompts: list[tuple[list[int], str]], tokens: int) -> list[list[int]]:
        """All prompts at once, each with its cache salt; what each said."""
        from vllm import SamplingParams

        inputs: Any = [{"prompt_token_ids": ids} | ({"cache_salt": salt} if salt else {}) for ids, salt in prompts]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def held(self) -> set[int]:
        """The engine's own names of all blocks that a prompt can reuse, as it writes them into events."""
        from vllm.v1.core.kv_cache_utils import get_block_hash, maybe_convert_block_hash

        return {
            int(maybe_convert_block_hash(get_block_hash(key))) for key in self._pool.cached_block_hash_to_block._cache
        }

    def copies(self) -> int:
        """Blocks that hold something, more than one of the same prefix included."""
        return sum(block.block_hash is not None for block in self._pool.blocks)

    def forget(self) -> bool:
        return bool(self._llm.reset_prefix_cache())
