"""Two routers' dispatches on one real server: their loads add up, and its loss fails nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from cluster.clock import RealClock, VirtualClock
from cluster.config import RouterConfig, parse_config
from cluster.config_admission import AdmissionConfig
from cluster.config_store import StoreConfig
from cluster.engine import Role, Sampling
from cluster.errors import BatonError, EngineFailed, StoreUnavailable, TenantLimited
from cluster.memory_store import MemoryStore
from cluster.quota import Claim, Granted, Limits, Returned, Verdict
from cluster.redis_store import RedisStore
from cluster.store import NOTHING, Changes, Reserved, Shared
from cluster.store_mirror import StoreMirror
from cluster.wire import role_to_wire
from protos.baton.v1 import worker_pb2
from router.caller import Caller
from router.dispatch import Dispatch
from router.gate import Gate
from router.generation import Emission, GenerationRequest
from router.journal import Journal
from router.journal_record import Timing
from router.session_pins import SharedPins
from router.shared_state import QuotaClaims, SharedState, open_shared_state
from tests.cluster.redis_server import RedisServer
from tests.router.dispatch_parts import parts
from tests.waiting import eventually

PROMPT = 20
RULES = AdmissionConfig.model_validate(
    {"tenants": {"limited": {"max_concurrent": 3}, "counted": {"max_concurrent": 10_000}}}
)


class Router:
    """A dispatch with its part of the shared state; its one worker answers when told."""

    def __init__(self, name: str, store: StoreConfig) -> None:
        clock = RealClock()
        self.shared = SharedState(StoreMirror(RedisStore(store, "test"), name, store, clock), clock)
        config = RouterConfig()
        gate = Gate(RULES, config.max_in_flight, clock.now, self.shared.claims)
        self.dispatch = Dispatch(config, self.post, clock.now, parts(clock.now, gate=gate, shared=self.shared.mirror))
        self.dispatch.connect(self)
        self.dispatch.worker_up(worker_pb2.WorkerDescription(worker_id="w", role=role_to_wire(Role.PREFILL)))
        self.attempts: list[str] = []
        self.errors: list[BatonError] = []
        self.served = 0
        self._name = name
        self._sent = 0

    def post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        if message.HasField("submit"):
            self.attempts.append(message.submit.attempt_id)
        return True

    def deliver(self, emissions: Sequence[Emission]) -> None:
        self.errors += [emission.error for emission in emissions if emission.error is not None]
        self.served += sum(emission.finish_reason is not None for emission in emissions)

    def ask(self, requests: int, tenant: str = "free") -> None:
        for _ in range(requests):
            self._sent += 1
            prompt = [ord(self._name), *range(self._sent, self._sent + PROMPT - 1)]  # no prefix of any other
            self.dispatch.submit(
                GenerationRequest(f"{self._name}-{self._sent}", prompt, Sampling(1), caller=Caller(tenant))
            )

    def answer(self, requests: int) -> None:
        ended, self.attempts = self.attempts[:requests], self.attempts[requests:]
        finish = worker_pb2.FINISH_REASON_LENGTH
        outputs = [worker_pb2.Output(attempt_id=id_, token_ids=[1], finish_reason=finish) for id_ in ended]
        self.dispatch.on_step("w", worker_pb2.StepOutputs(outputs=outputs))

    async def load(self, requests: int) -> None:
        """One after the other; for every second one the tenant's quota must be asked."""
        for number in range(requests):
            self.ask(1, tenant="counted" if number % 2 else "free")
            await eventually(lambda: bool(self.attempts or self.errors))
            assert self.errors == []
            self.answer(1)


@pytest.fixture
async def pair(store_server: RedisServer) -> AsyncIterator[tuple[Router, Router]]:
    keys = {"url": store_server.url, "period_s": 0.02, "deadline_s": 2.0, "lease_s": 30.0}
    routers = Router("a", StoreConfig.model_validate(keys)), Router("b", StoreConfig.model_validate(keys))
    for router in routers:
        await router.shared.start()
    yield routers
    for router in routers:
        router.dispatch.fail_all(EngineFailed("the end"))
        router.dispatch.check_integrity()
        await router.shared.close()


def load_of(router: Router) -> tuple[int, int]:
    """Prompt tokens and sequences on the worker, as placement sees them."""
    router.dispatch.on_time()
    loads = router.dispatch.placing.placement.loads
    row = loads.row("w")
    assert row is not None
    on_worker = loads.of(np.array([row]))
    return int(on_worker.prefill_tokens[0]), int(on_worker.sequences[0])


async def test_a_session_served_through_one_router_stays_where_it_was_through_the_other(
    pair: tuple[Router, Router],
) -> None:
    a, b = (SharedPins(router.shared.mirror) for router in pair)
    a.pin("talk", Role.PREFILL, "p1", 0.0)
    a.pin("talk", Role.DECODE, "d1", 0.0)
    await eventually(lambda: b.get("talk", Role.PREFILL, 0.0) == "p1")
    assert b.get("talk", Role.DECODE, 0.0) == "d1"
    b.pin("talk", Role.DECODE, "d2", 0.0)
    await eventually(lambda: a.get("talk", Role.DECODE, 0.0) == "d2")


async def test_what_one_router_wrote_down_every_router_tells(pair: tuple[Router, Router]) -> None:
    a, b = (Journal(name, 10, m.record, m.recall) for name, m in zip("ab", _mirrors(pair), strict=True))
    a.begin("cmpl-1", "acme", PROMPT, 0.0)
    a.end("cmpl-1", "completed", Timing(0.5))
    await pair[0].shared.mirror.exchange()
    found = await b.look_up("cmpl-1")
    assert found is not None
    assert (found.router_id, found.tenant, found.actual.ttft_s) == ("a", "acme", 0.5)
    assert await b.look_up("cmpl-2") is None


def _mirrors(pair: tuple[Router, Router]) -> list[StoreMirror]:
    return [router.shared.mirror for router in pair]


async def test_what_two_routers_have_reserved_adds_up_on_both(pair: tuple[Router, Router]) -> None:
    a, b = pair
    a.ask(2)
    b.ask(3)
    for router in pair:
        await eventually(lambda router=router: load_of(router) == (5 * PROMPT, 5))  # type: ignore[misc]
    a.answer(2)
    await eventually(lambda: load_of(b) == (3 * PROMPT, 3))
    assert b.shared.mirror.reserved_elsewhere("w") == NOTHING
    assert a.shared.mirror.reserved_elsewhere("w") == Reserved(3 * PROMPT, 3)


async def test_what_the_worker_reports_of_other_routers_is_not_counted_twice(pair: tuple[Router, Router]) -> None:
    a, b = pair
    b.ask(3)
    await eventually(lambda: load_of(a)[1] == 3)
    a.dispatch.on_load("w", worker_pb2.Load(running=2, waiting=2, queued_prefill_tokens=PROMPT))
    assert load_of(a) == (3 * PROMPT, 4)  # of each the newer word


async def test_a_router_that_leaves_takes_its_reservations_with_it(pair: tuple[Router, Router]) -> None:
    a, b = pair
    a.ask(2)
    await eventually(lambda: load_of(b)[1] == 2)
    await a.shared.close()
    await eventually(lambda: load_of(b) == (0, 0) and b.shared.status().routers == 1)


async def test_a_tenants_limit_holds_over_both_routers(pair: tuple[Router, Router]) -> None:
    a, b = pair
    a.ask(2, tenant="limited")
    await eventually(lambda: len(a.attempts) == 2)
    b.ask(2, tenant="limited")
    await eventually(lambda: len(b.attempts) + len(b.errors) == 2)
    assert [type(error) for error in b.errors] == [TenantLimited]
    a.answer(2)
    b.answer(1)
    b.errors.clear()

    async def let_in() -> bool:
        b.ask(1, tenant="limited")
        await eventually(lambda: bool(b.attempts or b.errors))
        b.errors.clear()
        return bool(b.attempts)

    await eventually(let_in)  # the store hears of what has ended with the next exchange


async def test_a_kill_in_mid_load_fails_no_request_and_its_return_reconciles(
    store_server: RedisServer, pair: tuple[Router, Router]
) -> None:
    load = [asyncio.create_task(router.load(600)) for router in pair]
    await eventually(lambda: min(router.served for router in pair) > 50)
    store_server.kill()
    await eventually(lambda: all(router.shared.status().degraded for router in pair))
    status = pair[0].shared.status()
    assert status.reason
    assert status.routers == 2
    during = pair[0].served
    await eventually(lambda: pair[0].served > during + 50)
    assert pair[0].shared.status().degraded_s > status.degraded_s
    store_server.restart()
    await asyncio.gather(*load)
    assert [router.errors for router in pair] == [[], []]
    assert [router.served for router in pair] == [600, 600]

    await eventually(lambda: not any(router.shared.status().degraded for router in pair))
    pair[0].ask(2)
    await eventually(lambda: load_of(pair[1]) == (2 * PROMPT, 2))
    assert pair[0].shared.status().reason == ""


# Without a server

NOBODY = "redis://127.0.0.1:1/0"


async def test_a_router_that_starts_while_the_store_is_away_enforces_its_part_of_a_tenants_limit() -> None:
    config = parse_config(
        {"model": {"path": "m"}, "router": {"replicas": 3}, "store": {"url": NOBODY, "deadline_s": 0.2}}
    )
    shared = open_shared_state(config, "a", RealClock())
    await shared.start()
    verdicts = [await shared.mirror.claim(Claim("t", str(number), 1, Limits(concurrent=6))) for number in range(3)]
    assert [isinstance(verdict, Granted) for verdict in verdicts] == [True, True, False]
    assert shared.status().routers == 3
    await shared.close()


class Hanging(MemoryStore):
    """Its claims are answered when told, or fail in a way that nobody foresaw."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(StoreConfig(), clock.now)
        self.answer = asyncio.Event()
        self.broken = False

    async def claim(self, claim: Claim) -> Verdict:
        await self.answer.wait()
        if self.broken:
            raise RuntimeError("unforeseen")
        return await super().claim(claim)


LIMITS = Limits(concurrent=1)


def claims_on(store: Hanging, clock: VirtualClock) -> tuple[QuotaClaims, StoreMirror]:
    mirror = StoreMirror(store, "a", StoreConfig(), clock)
    return QuotaClaims(mirror), mirror


async def test_a_dropped_claim_is_never_answered_and_takes_nothing() -> None:
    clock = VirtualClock()
    store = Hanging(clock)
    claims, mirror = claims_on(store, clock)
    answers: list[Verdict | BatonError] = []
    claims.ask(Claim("t", "dropped", 1, LIMITS), answers.append)
    await asyncio.sleep(0)
    claims.drop("dropped")
    store.answer.set()
    claims.ask(Claim("t", "next", 1, LIMITS), answers.append)
    await eventually(lambda: bool(answers))
    assert answers == [Granted()]
    claims.give_back(Returned("t", "next", LIMITS))
    await mirror.exchange()
    await claims.close()


async def test_an_unforeseen_failure_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    store = Hanging(clock)
    store.broken = True
    store.answer.set()
    claims, _ = claims_on(store, clock)
    answers: list[Verdict | BatonError] = []
    claims.ask(Claim("t", "c", 1, LIMITS), answers.append)
    await eventually(lambda: bool(answers))
    assert isinstance(answers[0], StoreUnavailable)
    assert "unforeseen" in caplog.text


async def test_closing_ends_claims_that_are_under_way() -> None:
    clock = VirtualClock()
    claims, _ = claims_on(Hanging(clock), clock)
    claims.ask(Claim("t", "c", 1, LIMITS), lambda verdict: pytest.fail("answered"))
    await claims.close()


class Joined(MemoryStore):
    """Its exchanges are answered when told; it counts who leaves and how often it is closed."""

    def __init__(self, clock: RealClock) -> None:
        super().__init__(StoreConfig(), clock.now)
        self.answer, self.asked = asyncio.Event(), asyncio.Event()
        self.left: list[str] = []
        self.closed = 0
        self.broken = False

    async def exchange(self, router_id: str, changes: Changes) -> Shared:
        self.asked.set()
        await self.answer.wait()
        if self.broken:
            raise RuntimeError("unforeseen")
        return await super().exchange(router_id, changes)

    async def leave(self, router_id: str) -> None:
        self.left.append(router_id)
        await super().leave(router_id)

    async def close(self) -> None:
        self.closed += 1


def joining(store: Joined) -> SharedState:
    clock = RealClock()
    return SharedState(StoreMirror(store, "a", StoreConfig(), clock), clock)


async def test_a_router_that_is_stopped_in_its_first_exchange_leaves_the_store_once() -> None:
    store = Joined(RealClock())
    shared = joining(store)
    starting = asyncio.create_task(shared.start())
    await store.asked.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    store.answer.set()
    await shared.close()
    await shared.close()
    assert (store.left, store.closed) == (["a"], 1)


async def test_a_router_whose_exchanges_have_failed_leaves_the_store_too(caplog: pytest.LogCaptureFixture) -> None:
    store = Joined(RealClock())
    store.answer.set()
    shared = joining(store)
    await shared.start()
    store.broken = True
    await eventually(lambda: shared._task is not None and shared._task.done())
    store.broken = False
    await shared.close()
    assert (store.left, store.closed) == (["a"], 1)
    assert "unforeseen" in caplog.text


async def test_a_router_that_never_started_has_nothing_to_say_at_its_end() -> None:
    store = Joined(RealClock())
    await joining(store).close()
    assert not store.asked.is_set()
    assert store.left == []


async def test_the_end_of_the_exchange_task_is_noticed() -> None:
    clock = RealClock()
    shared = SharedState(StoreMirror(MemoryStore(StoreConfig(), clock.now), "a", StoreConfig(), clock), clock)
    await shared.start()
    shared.check()
    assert shared._task is not None
    shared._task.cancel()
    await eventually(lambda: shared._task is not None and shared._task.done())
    with pytest.raises(EngineFailed, match="exchange"):
        shared.check()
    await shared.close()
    await shared.close()
