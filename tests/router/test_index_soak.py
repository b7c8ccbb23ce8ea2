"""The router's prefix index against what its workers hold, over real gRPC: thousands of requests to workers with small
caches that come and go; in the end both agree block by block."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.engine import Role
from router.fleet import Fleet
from router.prefix_index import PrefixIndex
from router.worker_link import WorkerLink
from router.worker_watch import Sinks, Turns, WorkerWatch
from tests.router.dispatch_parts import BLOCK_TOKENS, parts
from tests.router.simulated_cluster import SECRET, Clients, Running, SimulatedCluster, engine_config, expected_tokens
from tests.router.test_worker_watch import Known
from tests.waiting import eventually

REQUESTS = 5_000
CLIENTS = 32
REQUESTS_PER_TURN = 200
POOL_BLOCKS, MOST_PROMPT_BLOCKS = 96, 24
OUTPUT = 6
CONFIG = engine_config(step_s=0.0005, num_blocks=POOL_BLOCKS, max_running=8)
VOCABULARY = CONFIG.engine.simulated.vocabulary
POOLS = {"p1": Role.PREFILL, "p2": Role.PREFILL, "d1": Role.DECODE, "d2": Role.DECODE, "d3": Role.DECODE}
HELD_AT_MOST = len(POOLS) * POOL_BLOCKS
ROOM = 4 * HELD_AT_MOST  # for what workers hold, for guesses, and for what a worker that is gone held


class Ledger:
    """Passes everything on to the index, and watches its size."""

    def __init__(self, index: PrefixIndex) -> None:
        self.index = index
        self.removed = self.snapshots = self.most = 0

    def blocks_cleared(self, worker_id: str) -> None:
        self.snapshots += 1
        self.index.blocks_cleared(worker_id)

    def blocks_stored(self, worker_id: str, hashes: Sequence[int]) -> None:
        self.index.blocks_stored(worker_id, hashes)
        self.most = max(self.most, len(self.index))

    def blocks_removed(self, worker_id: str, hashes: Sequence[int]) -> None:
        self.removed += len(hashes)
        self.index.blocks_removed(worker_id, hashes)

    def worker_gone(self, worker_id: str) -> None:
        self.index.worker_gone(worker_id)


class Soak:
    def __init__(self, index_blocks: int) -> None:
        self.cluster = SimulatedCluster(CONFIG)
        made = parts(RealClock().now, index_blocks=index_blocks, guess_s=1.0)
        self.index = made.placing.placement.index
        self.ledger = Ledger(self.index)
        config = RouterConfig(worker_deadline_s=2.0)
        self.fleet = Fleet(config, self.cluster.directory, RealClock(), "router", 7, made, blocks=self.ledger)
        self.clients = Clients(self.fleet.dispatch, "r")
        self.served = 0

    async def linked(self, worker_id: str, epoch: int) -> None:
        await eventually(lambda: (w := self.fleet.dispatch.view.get(worker_id)) is not None and w.epoch == epoch)

    # The load

    async def load(self, requests: int) -> None:
        """So many requests in all; every client talks on until its conversation is full, then begins another."""
        left = iter(range(requests))
        draw = random.Random(5)
        beginnings = [_words(draw, 8 * BLOCK_TOKENS) for _ in range(4)]
        await asyncio.gather(*(self._talk(random.Random(seed), beginnings, left) for seed in range(CLIENTS)))

    async def _talk(self, draw: random.Random, beginnings: list[list[int]], left: Iterator[int]) -> None:
        said: list[int] = []
        for _ in left:
            said = said or list(draw.choice(beginnings))
            said += _words(draw, draw.randrange(10, 4 * BLOCK_TOKENS))
            answer = await self.clients.ask(list(said), OUTPUT)
            assert answer.error is None, answer.error
            assert answer.tokens == expected_tokens(said, OUTPUT, VOCABULARY)
            said += answer.tokens
            if len(said) > (MOST_PROMPT_BLOCKS - 4) * BLOCK_TOKENS:
                said = []
            self.served += 1

    # Workers that go and come

    async def turn_over(self, turns: int) -> None:
        """One after the other as requests are served, each time another worker in another way."""
        draw, names = random.Random(9), iter(range(100, 200))
        ways: list[Callable[[str, str], Awaitable[None]]] = [
            self._returns_to_its_address,
            self._another_takes_its_address,
            self._returns_elsewhere,
            self._leaves_for_another,
            self._its_watch_breaks,
        ]
        for turn in range(turns):
            await self._until_served(int((turn + 0.5) * REQUESTS_PER_TURN))
            gone = draw.choice(sorted(self.cluster.workers))
            await ways[turn % len(ways)](gone, f"{gone[0]}{next(names)}")

    async def _until_served(self, requests: int) -> None:
        await eventually(lambda: self.served >= requests, within_s=60)

    async def _returns_to_its_address(self, gone: str, _: str) -> None:
        old = await self.cluster.crash(gone)
        await self._add(gone, old, port=old.port)

    async def _another_takes_its_address(self, gone: str, name: str) -> None:
        """The directory lists both for a while."""
        old = await self.cluster.crash(gone)
        await self._add(name, old, port=old.port)
        await self.cluster.withdraw(old.worker)

    async def _returns_elsewhere(self, gone: str, _: str) -> None:
        await self._add(gone, await self.cluster.crash(gone))

    async def _leaves_for_another(self, gone: str, name: str) -> None:
        await self._add(name, self.cluster.workers[gone])
        await self.cluster.leave(gone)

    async def _its_watch_breaks(self, gone: str, _: str) -> None:
        snapshots = self.ledger.snapshots
        self.cluster.workers[gone].worker.feed.close()
        await eventually(lambda: self.ledger.snapshots > snapshots)

    async def _add(self, worker_id: str, instead_of: Running, port: int = 0) -> None:
        await self.cluster.add(worker_id, instead_of.worker.spec.role, port)
        await self.linked(worker_id, self.cluster.workers[worker_id].worker.epoch)

    # What is held

    async def quiet(self) -> None:
        """Nothing runs, nothing is leased, every change has been told, and no guess is left."""
        workers = self.cluster.workers
        await eventually(lambda: all(running.idle for running in workers.values()), within_s=20)
        await eventually(lambda: len(list(self.fleet.dispatch.view)) == len(workers))
        with contextlib.suppress(TimeoutError):  # whoever compares next says what differs
            await eventually(lambda: all(running.worker.feed.held == running.held for running in workers.values()))
            await eventually(self._told)

    def _told(self) -> bool:
        workers = self.cluster.workers
        union = set().union(*(running.held for running in workers.values()))
        if self.index.evicted:
            return len(self.index) <= len(union)
        return len(self.index) == len(union) and all(
            self.index.held_by(worker_id) == len(running.held) for worker_id, running in workers.items()
        )

    async def snapshots(self) -> dict[str, set[int]]:
        """What every worker tells one who asks anew, over the wire."""
        return {worker_id: await _snapshot(running) for worker_id, running in self.cluster.workers.items()}


def _words(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(VOCABULARY) for _ in range(count)]


async def _snapshot(running: Running) -> set[int]:
    worker_id, known = running.worker.record.worker_id, Known()
    link = WorkerLink(running.worker.record, "reader", 5.0)
    watch = WorkerWatch(worker_id, Sinks(known, known), Turns(), RealClock(), 5.0)
    task = asyncio.create_task(watch.run(link.watch, random.Random(1)))
    try:
        await eventually(lambda: watch.complete)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await link.close()
    return known.of(worker_id)


@pytest.fixture
def index_blocks() -> int:
    return ROOM


@pytest.fixture
async def soak(index_blocks: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Soak]:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, SECRET)
    soak = Soak(index_blocks)
    await soak.fleet.start()
    try:
        for worker_id, role in POOLS.items():
            await soak.cluster.add(worker_id, role)
            await soak.linked(worker_id, soak.cluster.workers[worker_id].worker.epoch)
        yield soak
        soak.fleet.check()
    finally:
        await soak.fleet.close()
        await soak.cluster.close()


@pytest.mark.engine  # thousands of requests take a while
@pytest.mark.timeout(600)  # of real time, however slow the machine: each of its waits has a bound of its own
async def test_after_thousands_of_requests_evictions_and_restarts_the_index_equals_every_snapshot(soak: Soak) -> None:
    await asyncio.gather(soak.load(REQUESTS), soak.turn_over(REQUESTS // REQUESTS_PER_TURN))
    assert soak.served == REQUESTS
    assert soak.ledger.removed > REQUESTS
    assert soak.ledger.most <= ROOM
    await soak.quiet()
    snapshots = await soak.snapshots()
    assert snapshots == {worker_id: running.held for worker_id, running in soak.cluster.workers.items()}
    assert all(snapshots.values())
    assert soak.index.evicted == 0
    soak.index.check_integrity(snapshots)
    assert not soak.index.suspects
    assert len(soak.index) == len(set().union(*snapshots.values())) <= HELD_AT_MOST
    soak.fleet.dispatch.check_integrity()
    soak.cluster.check_integrity()


@pytest.mark.parametrize("index_blocks", [HELD_AT_MOST // 4])
async def test_an_index_too_small_for_what_workers_hold_stays_within_its_bound_and_names_nothing_wrong(
    soak: Soak, index_blocks: int
) -> None:
    await asyncio.gather(soak.load(400), soak.turn_over(2))
    assert soak.ledger.most <= index_blocks
    assert soak.index.evicted > 0
    await soak.quiet()
    soak.index.check_integrity(await soak.snapshots())
    soak.fleet.dispatch.check_integrity()
    soak.cluster.check_integrity()
