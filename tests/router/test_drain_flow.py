"""Drains over two routers' fleets, real gRPC and simulated engines: whoever leaves, every answer is whole and exact."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.config_store import StoreConfig
from cluster.engine import Role
from cluster.errors import UnknownWorker
from cluster.memory_store import MemoryStore
from cluster.store import Store
from cluster.store_mirror import StoreMirror
from cluster.worker import State
from router.drains import Drains
from router.fleet import Fleet
from tests.router.dispatch_parts import BLOCK_TOKENS, parts
from tests.router.simulated_cluster import SECRET, Answer, Clients, SimulatedCluster, engine_config, expected_tokens
from tests.waiting import eventually

CONFIG = engine_config(step_s=0.004)
VOCABULARY = CONFIG.engine.simulated.vocabulary
POOLS = {"p1": Role.PREFILL, "p2": Role.PREFILL, "d1": Role.DECODE, "d2": Role.DECODE}
USUAL_S = {Role.PREFILL: 5.0, Role.DECODE: 5.0}


class Router:
    def __init__(self, name: str, store: Store, cluster: SimulatedCluster) -> None:
        clock = RealClock()
        self.mirror = StoreMirror(store, name, StoreConfig(period_s=0.02), clock)
        made = replace(parts(clock.now), drained=lambda: self.mirror.marks)
        self.fleet = Fleet(RouterConfig(worker_deadline_s=2.0), cluster.directory, clock, name, 7, made)
        self.drains = Drains(self.fleet, self.mirror, USUAL_S)
        self.clients = Clients(self.fleet.dispatch, name)
        self._draw = random.Random(name)
        self.asked: list[tuple[list[int], int, Answer]] = []
        self._exchanging: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._exchanging = asyncio.create_task(self.mirror.run())
        await self.fleet.start()

    async def close(self) -> None:
        await self.fleet.close()
        if self._exchanging is not None:
            self._exchanging.cancel()

    def open(self, max_tokens: int) -> Answer:
        prompt = [self._draw.randrange(VOCABULARY) for _ in range(self._draw.randrange(20, 6 * BLOCK_TOKENS))]
        answer = self.clients.open(prompt, max_tokens)
        self.asked.append((prompt, max_tokens, answer))
        return answer

    async def load(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            async with asyncio.timeout(30):
                await self.open(max_tokens=40).ended.wait()

    async def all_exact(self) -> None:
        for prompt, max_tokens, answer in self.asked:
            async with asyncio.timeout(30):
                await answer.ended.wait()
            assert answer.error is None, answer.error
            assert answer.tokens == expected_tokens(prompt, max_tokens, VOCABULARY)


class Stage:
    def __init__(self) -> None:
        self.cluster = SimulatedCluster(CONFIG)
        store = MemoryStore(StoreConfig(), RealClock().now)
        self.a, self.b = (Router(name, store, self.cluster) for name in "ab")

    @property
    def routers(self) -> tuple[Router, Router]:
        return self.a, self.b

    async def add(self, worker_id: str, role: Role) -> None:
        await self.cluster.add(worker_id, role)
        await eventually(lambda: all(router.fleet.dispatch.view.get(worker_id) for router in self.routers))

    async def gone(self, worker_id: str) -> None:
        """Waits for the end of the drain and does what a replica does then."""
        running = self.cluster.workers[worker_id]
        await asyncio.wait_for(running.worker.drained(), 15)
        assert running.idle
        await self.cluster.withdraw(running.worker)
        del self.cluster.workers[worker_id]
        await running.worker.close()

    async def held(self) -> list[Answer]:
        """Streams on every decode worker that do not end by themselves: nor does a drain, which nothing undoes then."""
        answers = [self.a.open(max_tokens=2_000) for _ in range(4)]
        await eventually(lambda: min(len(answer.tokens) for answer in answers) > 2)
        decoding = (self.cluster.workers[id_].worker for id_, role in POOLS.items() if role is Role.DECODE)
        assert all(worker.attempts for worker in decoding)
        return answers

    def give_up(self, held: list[Answer]) -> None:
        self.a.clients.give_up(held)
        self.a.asked = [asked for asked in self.a.asked if asked[2] not in held]

    def state(self, worker_id: str) -> State:
        return self.cluster.workers[worker_id].worker.state


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, SECRET)
    stage = Stage()
    for router in stage.routers:
        await router.start()
    try:
        for worker_id, role in POOLS.items():
            await stage.add(worker_id, role)
        yield stage
        for router in stage.routers:
            await router.all_exact()
            router.fleet.check()
            router.fleet.dispatch.check_integrity()
        await eventually(lambda: all(running.idle for running in stage.cluster.workers.values()))
        stage.cluster.check_integrity()
    finally:
        for router in stage.routers:
            await router.close()
        await stage.cluster.close()


async def test_streams_that_are_open_at_the_deadline_go_on_elsewhere_token_by_token(stage: Stage) -> None:
    answers = [router.open(max_tokens=400) for router in stage.routers for _ in range(6)]
    await eventually(lambda: min(len(answer.tokens) for answer in answers) > 20)
    assert len(stage.cluster.workers["d1"].worker.attempts) > 0
    assert await stage.a.drains.order("d1", "new disk", 0.3) == 0.3
    await stage.gone("d1")
    await asyncio.gather(*(answer.ended.wait() for answer in answers))
    assert stage.cluster.workers["d2"].worker.attempts.outcomes["length"] == len(answers)


async def test_short_streams_finish_where_they_are(stage: Stage) -> None:
    answers = [router.open(max_tokens=60) for router in stage.routers for _ in range(4)]
    await eventually(lambda: min(len(answer.tokens) for answer in answers) > 2)
    worker = stage.cluster.workers["d1"].worker
    await stage.a.drains.order("d1", "", None)
    await stage.gone("d1")
    assert worker.attempts.outcomes["moved"] == 0
    assert worker.attempts.outcomes["length"] > 0


async def test_a_drained_worker_gets_nothing_new_and_works_again_when_that_is_undone(stage: Stage) -> None:
    held = await stage.held()
    await stage.a.drains.order("d1", "", 60.0)
    await eventually(lambda: stage.state("d1") is State.DRAINING)
    before = sum(stage.cluster.workers["d1"].worker.attempts.outcomes.values())
    for router in stage.routers:
        for _ in range(4):
            await asyncio.wait_for(router.open(max_tokens=4).ended.wait(), 10)
    assert sum(stage.cluster.workers["d1"].worker.attempts.outcomes.values()) == before
    await stage.b.drains.undo("d1")
    await eventually(lambda: stage.state("d1") is State.READY)
    await eventually(lambda: all(not router.fleet.dispatch.view.get("d1").leaving for router in stage.routers))  # type: ignore[union-attr]
    stage.give_up(held)


async def test_a_router_that_comes_later_passes_the_order_on_and_cannot_turn_an_undone_one_around(stage: Stage) -> None:
    held = await stage.held()
    await stage.a.drains.order("d1", "", 60.0)
    await eventually(lambda: stage.state("d1") is State.DRAINING)
    late = Router("c", MemoryStore(StoreConfig(), RealClock().now), stage.cluster)  # knows nothing of the order
    await late.start()
    await eventually(lambda: late.fleet.dispatch.view.get("d1") is not None)
    assert late.fleet.dispatch.view.get("d1").leaving  # type: ignore[union-attr]
    await late.drains.undo("d1")
    await eventually(lambda: stage.state("d1") is State.READY)
    await late.close()
    stage.give_up(held)


async def test_every_worker_is_replaced_in_turn_under_load_and_no_request_fails(stage: Stage) -> None:
    stop = asyncio.Event()
    load = [asyncio.create_task(router.load(stop)) for router in stage.routers for _ in range(4)]
    for turn, (worker_id, role) in enumerate(POOLS.items()):
        await stage.add(f"{worker_id}-new", role)
        deadline_s = 0.0 if turn % 2 else None
        await stage.routers[turn % 2].drains.order(worker_id, "", deadline_s)
        await stage.gone(worker_id)
    stop.set()
    await asyncio.gather(*load)
    assert sorted(stage.cluster.workers) == sorted(f"{worker_id}-new" for worker_id in POOLS)
    assert len(stage.a.asked) > 10


async def test_nobody_is_blamed_for_a_move(stage: Stage) -> None:
    answers = [stage.a.open(max_tokens=300) for _ in range(8)]
    await eventually(lambda: min(len(answer.tokens) for answer in answers) > 5)
    failed: list[str] = []
    stage.a.fleet.dispatch.placing.failed = lambda worker_id, request_id: failed.append(worker_id)  # type: ignore[method-assign]
    await stage.a.drains.order("d1", "", 0.0)
    await stage.gone("d1")
    await asyncio.gather(*(answer.ended.wait() for answer in answers))
    assert failed == []


async def test_marks_of_workers_that_are_gone_do_not_stay_for_ever(stage: Stage) -> None:
    await stage.a.drains.order("d1", "", 0.0)
    await stage.gone("d1")
    await eventually(lambda: stage.a.fleet.role_of("d1") is None)
    await stage.a.drains.order("p1", "", 60.0)
    assert set(stage.a.drains.marks) == {"p1"}
    with pytest.raises(UnknownWorker, match=r"did you mean .*d2"):
        await stage.a.drains.order("d1", "", 0.0)
    with pytest.raises(UnknownWorker, match=r"did you mean .*d2"):
        await stage.a.drains.undo("d1")
