"""Workers with simulated engines behind real gRPC, and the frontend's place above a fleet, all on one event loop.

Workers come, leave in order, or are gone without a word. An answer can be checked: its tokens follow from its prompt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.clock import Clock, RealClock
from cluster.config import Config, parse_config
from cluster.engine import Role, Sampling
from cluster.errors import BatonError
from cluster.membership import MemoryDirectory
from cluster.simulated_batch import next_token
from cluster.simulated_engine import SimulatedEngine
from cluster.worker import Worker, WorkerSpec
from kv_transfer.worker_engine import build_engine
from router.caller import Caller
from router.dispatch import Dispatch
from router.generation import Emission, GenerationRequest
from tests.router.dispatch_parts import BLOCK_TOKENS

SECRET = "a secret that only the tests know"
TTL_S = 1000.0
_DRAIN_S = 30.0
_ANSWER_S = 300.0  # of real time, however slow the machine: only against waiting for ever


def engine_config(**simulated: Any) -> Config:
    """Keys of `engine.simulated`."""
    engine = {"kind": "simulated", "block_size": BLOCK_TOKENS, "simulated": simulated}
    return parse_config({"model": {"path": "none"}, "engine": engine, "kv_transfer": {"lease_s": 5.0}})


@dataclass(frozen=True, slots=True)
class Running:
    worker: Worker
    engine: SimulatedEngine

    @property
    def port(self) -> int:
        return int(self.worker.record.address.rpartition(":")[2])

    @property
    def held(self) -> frozenset[int]:
        return self.engine.batch.pool.contents

    @property
    def idle(self) -> bool:
        batch = self.engine.batch
        return not (batch.running or batch.waiting or batch.pool.used)


class SimulatedCluster:
    """Needs the ticket secret in the environment. `workers` are those that run, by id."""

    def __init__(self, prefill: Config, decode: Config | None = None) -> None:
        self.directory = MemoryDirectory(RealClock())
        self.workers: dict[str, Running] = {}
        self._configs = {Role.PREFILL: prefill, Role.DECODE: decode or prefill}
        self._epochs = itertools.count(1)

    async def add(self, worker_id: str, role: Role, port: int = 0) -> None:
        """Always with a new epoch. Port 0 takes a free one."""
        config = self._configs[role]
        tls = config.security.cluster_tls
        spec = WorkerSpec(worker_id, role, next(self._epochs), port=port, look_every_s=0.2, tls=tls)
        engine = await build_engine(config, config.prefill, RealClock(), spec, Path("unused"))
        assert isinstance(engine, SimulatedEngine)
        worker = Worker(spec, engine, RealClock())
        await worker.start()
        self.workers[worker_id] = Running(worker, engine)
        await self.directory.announce(worker.record, TTL_S)

    async def crash(self, worker_id: str) -> Running:
        """Its streams break; the directory still lists it."""
        gone = self.workers.pop(worker_id)
        await gone.worker.close()
        return gone

    async def leave(self, worker_id: str) -> None:
        """As a worker stops that is told to: no new work, and the end after its last."""
        worker = self.workers[worker_id].worker
        await self.withdraw(worker)
        assert await worker.drain(_DRAIN_S)
        del self.workers[worker_id]
        await worker.close()

    async def withdraw(self, worker: Worker) -> None:
        await self.directory.withdraw(worker.record.worker_id, worker.epoch)

    async def close(self) -> None:
        for running in self.workers.values():
            await running.worker.close()

    def check_integrity(self) -> None:
        """Of every engine at rest."""
        for worker_id, running in self.workers.items():
            assert running.idle, f"{worker_id} still holds something"
            running.engine.batch.pool.check_integrity()
            assert not running.worker.attempts
            assert running.worker.feed.held == running.held


@dataclass(slots=True)
class Answer:
    """What a client got, so far. Seconds of its clock; `first_at` is None where no token came."""

    request_id: str
    came_at: float
    first_at: float | None = None
    tokens: list[int] = field(default_factory=list)
    error: BatonError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Clients:
    """Everybody who asks one router."""

    def __init__(self, dispatch: Dispatch, name: str, clock: Clock | None = None) -> None:
        self._dispatch = dispatch
        self._name = name
        self._clock = clock or RealClock()
        self._numbers = itertools.count()
        self._open: dict[str, Answer] = {}
        dispatch.connect(self)

    async def ask(self, prompt: list[int], max_tokens: int, tenant: str = "free") -> Answer:
        """Raises `TimeoutError` when the answer does not end."""
        answer = self.open(prompt, max_tokens, tenant)
        async with asyncio.timeout(_ANSWER_S):
            await answer.ended.wait()
        return answer

    def open(self, prompt: list[int], max_tokens: int, tenant: str = "free") -> Answer:
        """Leaves it running."""
        answer = Answer(f"{self._name}-{next(self._numbers)}", self._clock.now())
        self._open[answer.request_id] = answer
        request = GenerationRequest(answer.request_id, prompt, Sampling(max_tokens), caller=Caller(tenant))
        self._dispatch.submit(request)
        return answer

    def give_up(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            del self._open[answer.request_id]
        self._dispatch.cancel([answer.request_id for answer in answers])

    def deliver(self, emissions: Sequence[Emission]) -> None:
        for emission in emissions:
            answer = self._open[emission.request_id]
            answer.tokens += emission.token_ids
            answer.error = emission.error
            if answer.first_at is None and answer.tokens:
                answer.first_at = self._clock.now()
            if emission.error is not None or emission.finish_reason is not None:
                del self._open[emission.request_id]
                answer.ended.set()


def expected_tokens(prompt: Sequence[int], count: int, vocabulary: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, vocabulary))
    return tokens[len(prompt) :]
