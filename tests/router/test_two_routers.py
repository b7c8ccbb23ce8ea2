"""Two routers' fleets on the same workers and one real store: what they reserve adds up, and the store's loss fails
nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.config_admission import AdmissionConfig
from cluster.config_store import StoreConfig
from cluster.engine import Role
from cluster.membership import MemoryDirectory
from cluster.redis_store import RedisStore
from cluster.store import NOTHING, Reserved
from cluster.store_mirror import StoreMirror
from router.fleet import Fleet
from router.gate import Gate
from router.shared_state import SharedState
from router.task_end import end_tasks
from tests.cluster.redis_server import RedisServer
from tests.router.dispatch_parts import BLOCK_TOKENS, parts
from tests.router.simulated_cluster import SECRET, Answer, Clients, SimulatedCluster, engine_config, expected_tokens
from tests.waiting import eventually

POOLS = {"p1": Role.PREFILL, "p2": Role.PREFILL, "d1": Role.DECODE, "d2": Role.DECODE}
CONFIG = engine_config(step_s=0.002)
VOCABULARY = CONFIG.engine.simulated.vocabulary
RULES = AdmissionConfig.model_validate({"tenants": {"counted": {"max_concurrent": 10_000}}})
ENDLESS = 100_000  # tokens
REQUESTS, CLIENTS, OUTPUT = 160, 6, 4


class Router:
    def __init__(self, name: str, url: str, directory: MemoryDirectory) -> None:
        clock, config = RealClock(), RouterConfig(worker_deadline_s=2.0)
        store = StoreConfig(url=url, period_s=0.02, deadline_s=0.2, lease_s=30.0)
        self.shared = SharedState(StoreMirror(RedisStore(store, "test"), name, store, clock), clock)
        gate = Gate(RULES, config.max_in_flight, clock.now, self.shared.claims)
        made = parts(clock.now, gate=gate, shared=self.shared.mirror)
        self.loads = made.placing.placement.loads
        self.fleet = Fleet(config, directory, clock, name, 7, made)
        self.clients = Clients(self.fleet.dispatch, name)
        self.served = 0
        self.loading: asyncio.Task[None] | None = None
        self._draw = random.Random(name)

    def hold(self, streams: int) -> list[Answer]:
        """Requests that go on until they are given up."""
        return [self.clients.open(self._prompt(), ENDLESS) for _ in range(streams)]

    def load(self, requests: int) -> asyncio.Task[None]:
        """For every second one the tenant's quota must be asked."""
        self.loading = asyncio.create_task(self._load(iter(range(requests))), name="load")
        return self.loading

    async def _load(self, left: Iterator[int]) -> None:
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client(left))

    async def _client(self, left: Iterator[int]) -> None:
        for number in left:
            prompt = self._prompt()
            answer = await self.clients.ask(prompt, OUTPUT, "counted" if number % 2 else "free")
            assert answer.error is None, answer.error
            assert answer.tokens == expected_tokens(prompt, OUTPUT, VOCABULARY)
            self.served += 1

    @property
    def own(self) -> dict[str, Reserved]:
        loads = {worker_id: self.loads.own(worker_id) for worker_id in POOLS}
        return {id_: Reserved(round(load.prefill_tokens), round(load.sequences)) for id_, load in loads.items()}

    @property
    def elsewhere(self) -> dict[str, Reserved]:
        return {worker_id: self.shared.mirror.reserved_elsewhere(worker_id) for worker_id in POOLS}

    @property
    def seen(self) -> dict[str, int]:
        """Sequences on each worker, as placement counts them."""
        rows = {worker_id: self.loads.row(worker_id) for worker_id in POOLS}
        return {
            worker_id: round(self.loads.of(np.array([row])).sequences.item())
            for worker_id, row in rows.items()
            if row is not None
        }

    @property
    def degraded(self) -> bool:
        return self.shared.status().degraded

    def _prompt(self) -> list[int]:
        return [self._draw.randrange(VOCABULARY) for _ in range(self._draw.randrange(20, 6 * BLOCK_TOKENS))]


class Pair:
    def __init__(self, url: str) -> None:
        self.cluster = SimulatedCluster(CONFIG)
        self.a, self.b = (Router(name, url, self.cluster.directory) for name in "ab")

    @property
    def routers(self) -> tuple[Router, Router]:
        return self.a, self.b

    def agree_on(self, streams: int) -> bool:
        """Each knows what the other reserves, and both place by the sum, which is what the workers run."""
        run = {worker_id: running.engine.batch.running for worker_id, running in self.cluster.workers.items()}
        return (
            sum(run.values()) == streams
            and self.a.elsewhere == self.b.own
            and self.b.elsewhere == self.a.own
            and self.a.seen == self.b.seen == run
        )


@pytest.fixture
async def pair(store_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, SECRET)
    pair = Pair(store_server.url)
    for router in pair.routers:
        await router.shared.start()
        await router.fleet.start()
    try:
        for worker_id, role in POOLS.items():
            await pair.cluster.add(worker_id, role)
        for router in pair.routers:
            await eventually(lambda router=router: len(router.seen) == len(POOLS))  # type: ignore[misc]
        yield pair
        for router in pair.routers:
            router.fleet.check()
            router.shared.check()
            router.fleet.dispatch.check_integrity()
    finally:
        for router in pair.routers:
            if router.loading is not None:
                await end_tasks([router.loading])
            await router.fleet.close()
            await router.shared.close()
        await pair.cluster.close()


async def test_the_reservations_of_two_routers_add_up_on_both(pair: Pair) -> None:
    a, b = pair.routers
    held = a.hold(7)
    b.hold(4)
    await eventually(lambda: pair.agree_on(11))
    assert sum(share.sequences for share in a.elsewhere.values()) == 4
    assert sum(share.sequences for share in b.elsewhere.values()) == 7
    a.clients.give_up(held)
    await eventually(lambda: pair.agree_on(4))
    assert set(b.elsewhere.values()) == {NOTHING}


async def test_the_stores_loss_in_mid_load_fails_no_request_and_on_its_return_reservations_agree(
    store_server: RedisServer, pair: Pair
) -> None:
    a, b = pair.routers
    a.hold(3)
    held = b.hold(2)
    load = [router.load(REQUESTS) for router in pair.routers]
    await eventually(lambda: min(router.served for router in pair.routers) > REQUESTS // 8)

    store_server.kill()
    # A connection that the server refuses: all that it had answered before is heard.
    await eventually(lambda: all("connecting to" in router.shared.status().reason for router in pair.routers))
    assert a.degraded
    assert b.degraded
    known, served = (a.elsewhere, b.elsewhere), (a.served, b.served)
    a.hold(2)
    b.clients.give_up(held[:1])
    await eventually(lambda: a.served > served[0] + REQUESTS // 8 and b.served > served[1] + REQUESTS // 8)
    assert (a.elsewhere, b.elsewhere) == known  # the last that was heard
    assert a.degraded
    assert b.degraded

    store_server.restart()
    await asyncio.gather(*load)
    assert [router.served for router in pair.routers] == [REQUESTS, REQUESTS]
    await eventually(lambda: not (a.degraded or b.degraded) and pair.agree_on(6))
    assert sum(share.sequences for share in a.elsewhere.values()) == 1
    assert sum(share.sequences for share in b.elsewhere.values()) == 5
