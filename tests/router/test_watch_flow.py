"""Watch in the whole: real workers with simulated engines under a fleet, from the engine's pool to the router."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig, parse_config
from cluster.engine import Role, Sampling
from cluster.membership import MemoryDirectory, WorkerRecord
from cluster.simulated_engine import SimulatedEngine
from cluster.worker import Worker, WorkerSpec
from kv_transfer.worker_engine import build_engine
from router.fleet import Fleet
from router.generation import GenerationRequest
from tests.router.dispatch_parts import parts
from tests.router.test_fleet import TTL_S, Listener
from tests.router.test_worker_watch import Known
from tests.waiting import eventually

AT_ONCE_S = 0.1


CONFIG = parse_config(
    {
        "model": {"path": "none"},
        "engine": {"kind": "simulated", "block_size": 16, "simulated": {"step_s": 0.0005, "num_blocks": 40}},
    }
)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, "a secret that only the tests know")


async def new_worker(worker_id: str, role: Role, epoch: int) -> tuple[Worker, SimulatedEngine]:
    spec = WorkerSpec(worker_id, role, epoch, look_every_s=0.02)
    engine = await build_engine(CONFIG, CONFIG.prefill, RealClock(), spec, Path("unused"))
    assert isinstance(engine, SimulatedEngine)
    return Worker(spec, engine, RealClock()), engine


class Stage:
    def __init__(self) -> None:
        self.known = Known()
        self.listener = Listener()
        self.directory = MemoryDirectory(RealClock())
        self.workers: dict[str, tuple[Worker, SimulatedEngine]] = {}
        config = RouterConfig(worker_deadline_s=1.0)
        self.fleet = Fleet(
            config, self.directory, RealClock(), "router-1", 7, parts(RealClock().now), blocks=self.known
        )
        self.fleet.dispatch.connect(self.listener)

    async def add(self, worker_id: str, role: Role, epoch: int = 1) -> None:
        worker, engine = await new_worker(worker_id, role, epoch)
        await worker.start()
        self.workers[worker_id] = (worker, engine)
        await self.directory.announce(worker.record, TTL_S)
        await eventually(lambda: worker_id in self.known.blocks)

    async def run(self, name: str, prompts: list[list[int]], max_tokens: int = 20) -> None:
        for number, prompt in enumerate(prompts):
            self.fleet.dispatch.submit(GenerationRequest(f"{name}{number}", prompt, Sampling(max_tokens)))
        await self.listener.until_ended(*(f"{name}{number}" for number in range(len(prompts))))

    def agrees(self) -> bool:
        held = {worker_id: set(engine.batch.pool.contents) for worker_id, (_, engine) in self.workers.items()}
        return self.known.blocks == held


@asynccontextmanager
async def on_stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.fleet.start()
    try:
        yield stage
        stage.fleet.check()
    finally:
        await stage.fleet.close()
        for worker, _ in stage.workers.values():
            await worker.close()


def prompts(count: int, seed: int) -> list[list[int]]:
    """No two share a block."""
    return [[100 * seed + number, *range(100 + 7 * number)] for number in range(count)]


async def test_the_router_knows_every_pool_through_hand_offs_evictions_and_a_worker_that_comes_anew() -> None:
    async with on_stage() as stage:
        await stage.add("p", Role.PREFILL)
        await stage.add("d1", Role.DECODE)
        await stage.add("d2", Role.DECODE)
        for turn in range(6):
            await stage.run(f"t{turn}-", prompts(5, turn))
            await eventually(stage.agrees)
        assert all(stage.known.blocks.values())
        worker, _ = stage.workers.pop("d1")
        await worker.close()
        await eventually(lambda: "d1" not in stage.known.blocks)
        await stage.add("d1", Role.DECODE, epoch=2)
        await stage.run("again", prompts(5, 9))
        await eventually(stage.agrees)


async def test_a_draining_worker_gets_nothing_new() -> None:
    async with on_stage() as stage:
        await stage.add("d1", Role.DECODE)
        await stage.add("d2", Role.DECODE)
        await stage.workers["d1"][0].drain(5.0)
        await eventually(lambda: [w.worker_id for w in stage.fleet.dispatch.view.ready(Role.DECODE)] == ["d2"])
        await stage.run("a", prompts(6, 1))
        assert not stage.workers["d1"][1].batch.pool.contents


@pytest.mark.engine  # three processes to start
async def test_a_killed_worker_is_out_of_placement_at_once() -> None:
    """The best of a few kills: what the machine does meanwhile is not the router's."""
    async with on_stage() as stage:
        seconds = [await _kill(stage, f"w{number}") for number in range(3)]
    assert min(seconds) < AT_ONCE_S, seconds


async def _kill(stage: Stage, worker_id: str) -> float:
    """Seconds from the kill until the router places nothing there."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, worker_id), daemon=True)
    process.start()
    try:
        address = await asyncio.to_thread(here.recv)
        await stage.directory.announce(WorkerRecord(worker_id, Role.DECODE, 1, address), TTL_S)
        await eventually(lambda: worker_id in stage.known.blocks)
        process.kill()
        begin = time.perf_counter()
        await eventually(lambda: stage.fleet.dispatch.view.get(worker_id) is None)
        seconds = time.perf_counter() - begin
        assert worker_id not in stage.known.blocks
        await stage.directory.withdraw(worker_id, 1)
        return seconds
    finally:
        process.kill()
        process.join()
        here.close()


def _serve(pipe: Connection, worker_id: str) -> None:
    async def serve() -> None:
        worker, _ = await new_worker(worker_id, Role.DECODE, 1)
        await worker.start()
        pipe.send(worker.record.address)
        await asyncio.Event().wait()

    asyncio.run(serve())
