"""The product's engine of a worker, driven by a test: attempts in, whole answers out, while a pump takes its steps."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.clock import RealClock
from cluster.config import parse_config
from cluster.engine import (
    Engine,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    Leg,
    PromptOrigin,
    Role,
    Sampling,
    TransferCount,
)
from cluster.worker import WorkerSpec
from kv_transfer.worker_engine import build_engine

_ANSWER_S = 60.0
_QUIET_S = 20.0


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    origin: PromptOrigin
    ticket: bytes
    finish_reason: FinishReason | None


class DrivenEngine:
    """`pids`: of the engine core."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.steps = 0
        self._outputs: dict[str, list[EngineOutput]] = {}
        self._moved = asyncio.Condition()
        self._names = 0
        self._pump: asyncio.Task[None] | None = None

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.engine._core._processes]  # type: ignore[attr-defined]

    async def start(self) -> None:
        await self.engine.start()
        self._pump = asyncio.create_task(self._take_steps())

    async def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self.engine.close()

    async def submit(self, leg: Leg, ids: list[int], tokens: int, ticket: bytes = b"", cache_salt: str = "") -> str:
        from vllm import SamplingParams

        from cluster.vllm_params import encode_params

        self._names += 1
        attempt_id = f"{leg.value}-{self._names}"
        params = encode_params(SamplingParams(temperature=0, ignore_eos=True))
        await self.engine.submit(EngineRequest(attempt_id, leg, ids, Sampling(tokens), params, ticket, cache_salt))
        return attempt_id

    async def answer(self, attempt_id: str) -> Answer:
        def finished() -> bool:
            return any(output.finish_reason is not None for output in self._outputs.get(attempt_id, ()))

        async with asyncio.timeout(_ANSWER_S), self._moved:
            await self._moved.wait_for(finished)
        outputs = self._outputs.pop(attempt_id)
        origin = next(output.origin for output in outputs if output.origin is not None)
        tokens = [token for output in outputs for token in output.token_ids]
        return Answer(tokens, origin, outputs[-1].ticket, outputs[-1].finish_reason)

    async def prefill(self, ids: list[int]) -> Answer:
        return await self.answer(await self.submit(Leg.PREFILL, ids, 1))

    async def decode(self, ids: list[int], tokens: int, ticket: bytes) -> Answer:
        return await self.answer(await self.submit(Leg.DECODE, ids, tokens, ticket))

    async def whole(self, ids: list[int], tokens: int) -> Answer:
        return await self.answer(await self.submit(Leg.WHOLE, ids, tokens))

    async def alone(self, ids: list[int], tokens: int) -> list[int]:
        """What this engine says without any hand-off and without what is cached."""
        salt = f"alone-{self._names}"
        return (await self.answer(await self.submit(Leg.WHOLE, ids, tokens, cache_salt=salt))).tokens

    async def quiet(self) -> EngineStats:
        """Once nothing runs, no block is held and no lease waits."""
        async with asyncio.timeout(_QUIET_S):
            while True:
                steps = self.steps
                stats = await self.engine.stats()
                if (stats.running, stats.waiting, stats.kv_usage, stats.leases) == (0, 0, 0.0, 0):
                    return stats
                async with self._moved:
                    await self._moved.wait_for(lambda: self.steps > steps)  # noqa: B023

    async def _take_steps(self) -> None:
        while True:
            outputs: Sequence[EngineOutput] = await self.engine.step()
            self.steps += 1
            async with self._moved:
                for output in outputs:
                    self._outputs.setdefault(output.attempt_id, []).append(output)
                self._moved.notify_all()


async def started_engine(model: Path, role: Role, folder: Path, **sections: dict[str, Any]) -> DrivenEngine:
    """`sections` go over a small configuration in float32."""
    os.environ["BATON_TICKET_SECRET"] = "a secret that only the tests know"
    raw: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "float32", "max_model_len": 4096},
        "engine": {"kv_cache_mib": 128, "options": {"enforce_eager": True}},
    }
    config = parse_config({**raw, **sections})
    spec = WorkerSpec(f"{role.value}-0", role, epoch=time.time_ns())
    driven = DrivenEngine(await build_engine(config, getattr(config, role.value), RealClock(), spec, folder))
    try:
        await driven.start()
    except BaseException:
        await driven.close()
        raise
    return driven


@dataclass(frozen=True)
class Pair:
    prefill: DrivenEngine
    decode: DrivenEngine

    async def quiet(self) -> tuple[EngineStats, EngineStats]:
        return await self.prefill.quiet(), await self.decode.quiet()


@asynccontextmanager
async def started_pair(model: Path, folder: Path, **sections: dict[str, Any]) -> AsyncIterator[Pair]:
    """One engine of each role."""
    prefill = await started_engine(model, Role.PREFILL, folder, **sections)
    try:
        decode = await started_engine(model, Role.DECODE, folder, **sections)
        try:
            yield Pair(prefill, decode)
        finally:
            await decode.close()
    finally:
        await prefill.close()


def prompt(length: int, seed: int = 1) -> list[int]:
    draw = random.Random(f"{seed}-{length}")
    return [draw.randrange(300, 4000) for _ in range(length)]


def count(stats: EngineStats, transport: str, outcome: str) -> TransferCount:
    found = [t for t in stats.transfers if (t.transport, t.outcome) == (transport, outcome)]
    return found[0] if found else TransferCount(transport, outcome, 0, 0, 0)
