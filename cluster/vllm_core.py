"""The engine core of vLLM as a process of ours: its configuration, its start within a deadline, its sure end.

vLLM's client starts the process and blocks until the model is loaded, so both run on a thread; when the time is over
or the caller gives up, the process is killed, which also ends the thread's wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.executor import Executor

from cluster.config import EngineConfig, ModelConfig
from cluster.engine_voice import EngineVoice
from cluster.errors import EngineFailed
from cluster.vllm_environment import prepare_environment
from cluster.vllm_events import EventSockets
from cluster.vllm_plugin import OWNER_VARIABLE, VOICE_VARIABLE

_POLL_S = 0.1
_STOP_S = 10.0
_GIVE_UP_S = 15.0


@dataclass(frozen=True, slots=True)
class VllmSpec:
    """`options` are engine arguments handed over unread. `gpus` is the tensor parallelism, 0 on CPU. `kv_transfer` is
    vLLM's own `kv_transfer_config`, made by whoever owns the connector; None runs without one. `environment` is what
    that connector needs. `events`: where the engine core tells what its prefix cache holds; None keeps it to itself."""

    model: ModelConfig
    engine: EngineConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    gpus: int = 0
    kv_transfer: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    events: EventSockets | None = None


def engine_arguments(spec: VllmSpec) -> dict[str, Any]:
    """The keyword arguments of vLLM's `AsyncEngineArgs`."""
    arguments: dict[str, Any] = dict(spec.options)
    arguments |= {
        "model": spec.model.path,
        "served_model_name": [spec.model.served_name],
        "max_model_len": spec.model.max_model_len,
        "dtype": spec.model.dtype,
        "block_size": spec.engine.block_size,
        "enable_prefix_caching": True,
    }
    if spec.kv_transfer is not None:
        arguments["kv_transfer_config"] = dict(spec.kv_transfer)
    if spec.events is not None:
        arguments["kv_events_config"] = spec.events.kv_events_config()
    if spec.engine.device == "cpu":
        arguments["kv_cache_memory_bytes"] = spec.engine.kv_cache_mib << 20
        arguments["distributed_executor_backend"] = "uni"
        # Cut into chunks, the prompt of a seeded request ends the engine on CPU: torch's generator there cannot take
        # back the draw that belongs to an unfinished prompt.
        arguments.setdefault("enable_chunked_prefill", False)
    else:
        arguments["tensor_parallel_size"] = spec.gpus
        if spec.gpus > 1:
            # Inside a placement group vLLM would choose Ray, and wait for GPUs that our own process holds for it.
            arguments["distributed_executor_backend"] = "mp"
    return arguments


class VllmCore:
    """One engine core, from start to end."""

    def __init__(self, spec: VllmSpec) -> None:
        self._spec = spec
        self._config: VllmConfig | None = None
        self._client: AsyncMPClient | None = None
        self._voice: EngineVoice | None = None
        self._given_up = threading.Event()
        self._children_before = set(multiprocessing.active_children())
        self._processes: list[Any] = []

    @property
    def config(self) -> VllmConfig:
        """As resolved by the engine core. Raises `EngineFailed` before the start."""
        if self._config is None:
            raise EngineFailed("the engine was not started")
        return self._config

    @property
    def client(self) -> AsyncMPClient:
        """Raises `EngineFailed` before the start."""
        if self._client is None:
            raise EngineFailed("the engine was not started")
        return self._client

    async def start(self) -> None:
        """Raises `EngineFailed` with the engine's own words when it does not come up within its deadline."""
        self._voice = EngineVoice()
        prepare_environment(self._spec.model, self._spec.engine, self._spec.environment)
        os.environ[OWNER_VARIABLE], os.environ[VOICE_VARIABLE] = str(os.getpid()), self._voice.path
        loading = asyncio.create_task(asyncio.to_thread(self._load))
        try:
            await asyncio.wait({loading}, timeout=self._spec.engine.start_deadline_s)
            if not loading.done():
                raise EngineFailed(self._obituary(f"not ready after {self._spec.engine.start_deadline_s:g} s"))
            loading.result()
            self._voice.seal()
        except EngineFailed:
            raise
        except Exception as error:
            raise EngineFailed(self._obituary(_first_line(error))) from error
        finally:
            if not loading.done() or loading.exception() is not None:
                await asyncio.shield(self._give_up(loading))

    async def close(self) -> None:
        """Ends the process: asked, then killed. May be called twice."""
        if self._client is not None:
            await asyncio.to_thread(self._client.shutdown, _STOP_S)
        for process in self._processes:
            await asyncio.to_thread(_end, process)
        if self._voice is not None:
            await asyncio.to_thread(self._voice.close)

    async def death(self) -> EngineFailed:
        """Why the engine core is gone, as the error to raise."""
        if self._voice is not None:
            await asyncio.to_thread(self._voice.wait_for_end, 1.0)
        codes = [process.exitcode for process in self._processes if process.exitcode is not None]
        return EngineFailed(self._obituary(_in_words(codes[0]) if codes else "the engine core is gone"))

    def _load(self) -> None:
        path = self._spec.model.path
        if path.startswith(("/", ".")) and not os.path.isdir(path):
            raise EngineFailed(
                f"model path {path} does not exist on this machine: put the model there, or name one of a hub"
            )
        config = AsyncEngineArgs(**engine_arguments(self._spec)).create_engine_config(UsageContext.ENGINE_CONTEXT)
        if self._given_up.is_set():
            raise EngineFailed("gave up before the engine core was started")
        # log_stats: every step then reports running, waiting and KV usage, also those without outputs.
        client = EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), log_stats=True)
        self._processes = list(client.resources.engine_manager.processes)
        self._config, self._client = config, client
        if self._spec.engine.device == "cpu":
            for process in self._processes:
                _let_run_anywhere(process.pid)

    async def _give_up(self, loading: asyncio.Task[None]) -> None:
        self._given_up.set()
        for _ in range(int(_GIVE_UP_S / _POLL_S)):
            for child in set(multiprocessing.active_children()) - self._children_before:
                child.kill()
            done, _ = await asyncio.wait({loading}, timeout=_POLL_S)
            if done:
                break
        with contextlib.suppress(BaseException):
            loading.exception()
        await self.close()

    def _obituary(self, cause: str) -> str:
        words, tail = ("", []) if self._voice is None else (self._voice.last_words(), self._voice.tail())
        told = f"vLLM engine ({self._spec.model.path}): {words or cause}"
        if words and cause not in words:
            told += f" ({cause})"
        return "\n  ".join([told, *tail])


def _let_run_anywhere(pid: int) -> None:
    """vLLM's own NIXL connector binds its process to the last core of the machine, where the compute threads of all
    engines of that machine would then meet."""
    cores = os.sched_getaffinity(0)
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:1000]


def _in_words(exit_code: int) -> str:
    if exit_code == -9:
        return "the engine core was killed (signal 9); often the machine is out of memory"
    return f"the engine core ended with exit code {exit_code}"


def _end(process: Any) -> None:
    if process.is_alive():
        process.kill()
    process.join(_STOP_S)
