"""The fleet over real gRPC with scripted workers: links follow the directory, requests survive what they can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.config_store import StoreConfig
from cluster.engine import Role, Sampling
from cluster.membership import MemoryDirectory
from cluster.memory_store import MemoryStore
from cluster.store_mirror import StoreMirror
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, worker_pb2
from router.admin_service import AdminService
from router.drains import Drains
from router.fleet import Fleet
from router.generation import Emission, GenerationRequest
from tests.router.dispatch_parts import load_of, parts
from tests.router.scripted_worker import LeaseBook, ScriptedWorker, expected_tokens
from tests.waiting import eventually

TTL_S = 1000.0
PROMPT = [301, 302, 303]


class Listener:
    """The frontend's place: collects what each request got."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, Emission] = {}
        self.news = asyncio.Condition()
        self.pending: set[asyncio.Task[None]] = set()

    def deliver(self, emissions: Sequence[Emission]) -> None:
        for emission in emissions:
            self.tokens.setdefault(emission.request_id, []).extend(emission.token_ids)
            if emission.error is not None or emission.finish_reason is not None:
                assert emission.request_id not in self.ends
                self.ends[emission.request_id] = emission
        task = asyncio.create_task(self._tell())
        self.pending.add(task)
        task.add_done_callback(self.pending.discard)

    async def _tell(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def until_ended(self, *request_ids: str) -> None:
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(lambda: all(request_id in self.ends for request_id in request_ids))

    async def until_tokens(self, request_id: str, count: int) -> None:
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(lambda: len(self.tokens.get(request_id, [])) >= count)


class Stage:
    """A directory, scripted workers and a fleet that follows them."""

    def __init__(self, **router: object) -> None:
        self.leases = LeaseBook()
        self.directory = MemoryDirectory(RealClock())
        self.listener = Listener()
        config = RouterConfig.model_validate({"worker_deadline_s": 1.0} | router)
        clock, store = RealClock(), StoreConfig()
        mirror = StoreMirror(MemoryStore(store, clock.now), "router-1", store, clock)
        self.parts = replace(parts(clock.now), drained=lambda: mirror.marks)
        self.fleet = Fleet(config, self.directory, RealClock(), "router-1", 7, self.parts)
        self.drains = Drains(self.fleet, mirror, {Role.PREFILL: 60.0, Role.DECODE: 60.0})
        self.fleet.dispatch.connect(self.listener)
        self.workers: dict[str, ScriptedWorker] = {}

    async def add(self, worker_id: str, role: Role) -> ScriptedWorker:
        worker = ScriptedWorker(worker_id, role, self.leases)
        self.workers[worker_id] = worker
        await self.directory.announce(await worker.start(), TTL_S)
        await self.linked(worker_id)
        return worker

    async def linked(self, worker_id: str, there: bool = True) -> None:
        async with asyncio.timeout(10):
            while (self.fleet.dispatch.view.get(worker_id) is not None) != there:
                await self.fleet.next_change.wait()

    async def ask(self, request_id: str, max_tokens: int = 5) -> None:
        self.fleet.dispatch.submit(GenerationRequest(request_id, PROMPT, Sampling(max_tokens)))


@asynccontextmanager
async def on_stage(**router: object) -> AsyncIterator[Stage]:
    """`router`: keys of its section."""
    stage = Stage(**router)
    await stage.fleet.start()
    try:
        yield stage
        stage.fleet.check()
    finally:
        await stage.fleet.close()
        for worker in stage.workers.values():
            await worker.stop()
    stage.fleet.dispatch.check_integrity()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with on_stage() as stage:
        yield stage


async def test_a_request_runs_over_both_pools_and_no_lease_stays(stage: Stage) -> None:
    await stage.add("p", Role.PREFILL)
    decode = await stage.add("d", Role.DECODE)
    await stage.ask("a")
    await stage.listener.until_ended("a")
    assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 5)
    assert [submit.leg for submit in decode.submits] == [worker_pb2.LEG_DECODE]
    assert (stage.leases.live, stage.leases.read) == (set(), 1)


async def test_many_requests_at_once_each_get_their_own_tokens(stage: Stage) -> None:
    for name in ("p1", "p2"):
        await stage.add(name, Role.PREFILL)
    for name in ("d1", "d2"):
        await stage.add(name, Role.DECODE)
    for i in range(40):
        request = GenerationRequest(str(i), [300 + i, 301], Sampling(20))
        stage.fleet.dispatch.submit(request)
    await stage.listener.until_ended(*map(str, range(40)))
    for i in range(40):
        assert stage.listener.tokens[str(i)] == expected_tokens([300 + i, 301], 20)
    assert stage.leases.live == set()


async def test_a_stream_goes_on_when_its_decode_worker_is_killed(stage: Stage) -> None:
    await stage.add("p", Role.PREFILL)
    first = await stage.add("d1", Role.DECODE)
    first.gate.clear()
    first.free_tokens = 2
    await stage.ask("a", max_tokens=6)
    await stage.listener.until_tokens("a", 3)
    await stage.add("d2", Role.DECODE)
    await first.stop()
    await stage.listener.until_ended("a")
    assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 6)


async def test_a_killed_prefill_worker_is_out_of_placement_at_once(stage: Stage) -> None:
    prefill = await stage.add("p", Role.PREFILL)
    decode = await stage.add("d", Role.DECODE)
    prefill.gate.clear()
    await stage.ask("a")
    await prefill.until(lambda: len(prefill.submits) == 1)
    await prefill.stop()
    await stage.listener.until_ended("a")
    assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 5)
    assert decode.submits[0].leg == worker_pb2.LEG_WHOLE
    assert stage.fleet.dispatch.view.get("p") is None


async def test_cancelling_reaches_the_worker_and_frees_the_lease(stage: Stage) -> None:
    await stage.add("p", Role.PREFILL)
    decode = await stage.add("d", Role.DECODE)
    decode.gate.clear()
    await stage.ask("a")
    await decode.until(lambda: len(decode.submits) == 1)
    stage.fleet.dispatch.cancel(["a"])
    await decode.until(lambda: decode.aborted == [decode.submits[0].attempt_id])
    prefill = stage.workers["p"]
    await prefill.until(lambda: prefill.released == ["lease-1"])
    assert stage.fleet.dispatch.in_flight == 0


async def test_a_worker_that_leaves_the_directory_finishes_its_streams(stage: Stage) -> None:
    prefill = await stage.add("p", Role.PREFILL)
    decode = await stage.add("d1", Role.DECODE)
    decode.gate.clear()
    await stage.ask("a")
    await decode.until(lambda: len(decode.submits) == 1)
    await stage.directory.withdraw("d1", decode.epoch)
    other = await stage.add("d2", Role.DECODE)
    other.load.running = 50  # the one that leaves would be the better choice
    other.feed.flush()
    await eventually(lambda: load_of(stage.parts, "d2").sequences == 50)
    await stage.ask("b")
    await stage.listener.until_ended("b")
    assert len(decode.submits) == 1
    decode.gate.set()
    await stage.listener.until_ended("a")
    assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 5)
    await stage.linked("d1", there=False)
    assert prefill.released == []


async def test_a_worker_that_says_it_drains_gets_nothing_new_until_it_is_ready_again(stage: Stage) -> None:
    await stage.add("p", Role.PREFILL)
    first = await stage.add("d1", Role.DECODE)
    second = await stage.add("d2", Role.DECODE)
    second.load.running = 50
    second.feed.flush()
    view = stage.fleet.dispatch.view
    await eventually(lambda: load_of(stage.parts, "d2").sequences == 50)
    first.feed.enter(worker_pb2.WORKER_STATE_STALLED, "no step")
    await eventually(lambda: len(view.ready(Role.DECODE)) == 1)
    await stage.ask("a")
    await stage.listener.until_ended("a")
    assert not first.submits
    first.feed.enter(worker_pb2.WORKER_STATE_READY, "")
    await eventually(lambda: len(view.ready(Role.DECODE)) == 2)


async def test_a_worker_that_comes_back_with_a_new_epoch_gets_a_new_link(stage: Stage) -> None:
    worker = await stage.add("d", Role.DECODE)
    await worker.stop()
    await stage.linked("d", there=False)
    worker.epoch = 2
    await stage.directory.announce(await worker.start(), TTL_S)
    await stage.linked("d")
    await stage.ask("a")
    await stage.listener.until_ended("a")
    assert stage.listener.tokens["a"] == expected_tokens(PROMPT, 5)


async def test_a_broken_link_is_made_again_while_the_worker_is_listed(stage: Stage) -> None:
    worker = await stage.add("d", Role.DECODE)
    assert worker.record is not None
    port = int(worker.record.address.rpartition(":")[2])
    await worker.stop()
    await stage.linked("d", there=False)
    await worker.start(port)
    await stage.linked("d")


async def test_a_drain_that_is_undone_while_no_session_stands_is_undone_with_the_next_one(stage: Stage) -> None:
    worker = await stage.add("d", Role.DECODE)
    assert worker.record is not None
    port = int(worker.record.address.rpartition(":")[2])
    await stage.drains.order("d", "new disk", 60.0)
    await worker.until(lambda: len(worker.drains) == 1)
    await worker.stop()
    await stage.linked("d", there=False)
    await stage.drains.undo("d")
    await worker.start(port)
    await worker.until(lambda: len(worker.drains) == 2)
    ordered, undone = worker.drains
    assert (undone.undo, undone.drain_id) == (True, ordered.drain_id)
    await stage.linked("d")
    assert _takes_work(stage) == ["d"]


async def test_status_names_the_worker_that_does_not_answer(stage: Stage) -> None:
    await stage.add("p", Role.PREFILL)
    gone = await stage.add("d", Role.DECODE)
    await gone.stop()
    await stage.linked("d", there=False)
    status = await AdminService(stage.fleet, "router-1", "demo").Status(admin_pb2.StatusRequest(), None)
    assert [(pool.role, pool.ready, pool.total) for pool in status.pools] == [
        (worker_pb2.ROLE_PREFILL, 1, 1),
        (worker_pb2.ROLE_DECODE, 0, 1),
    ]
    by_id = {worker.description.worker_id: worker for worker in status.workers}
    assert by_id["p"].unreachable == ""
    assert "UNAVAILABLE" in by_id["d"].unreachable
    assert (status.router_id, status.model) == ("router-1", "demo")


async def test_a_drained_worker_gets_nothing_new_until_that_is_undone(stage: Stage) -> None:
    for worker_id in ("d1", "d2"):
        await stage.add(worker_id, Role.DECODE)
    server = grpc.aio.server()
    admin = AdminService(stage.fleet, "router-1", "demo", drains=stage.drains)
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = admin_pb2_grpc.AdminStub(channel)
        await stub.Drain(admin_pb2.DrainRequest(worker_id="d1", reason="new disk"), timeout=5)
        assert _takes_work(stage) == ["d2"]
        status = await stub.Status(admin_pb2.StatusRequest(), timeout=5)
        assert {w.description.worker_id: w.drain_reason for w in status.workers if w.drained} == {"d1": "new disk"}
        for number in range(4):
            await stage.ask(f"request-{number}")
            await stage.listener.until_ended(f"request-{number}")
        assert (len(stage.workers["d1"].submits), len(stage.workers["d2"].submits)) == (0, 4)
        await stub.Drain(admin_pb2.DrainRequest(worker_id="d1", undo=True), timeout=5)
        assert _takes_work(stage) == ["d1", "d2"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Drain(admin_pb2.DrainRequest(worker_id="nobody"), timeout=5)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert refused.value.details() == "worker 'nobody' is not known; known: d1, d2"
    await server.stop(None)


def _takes_work(stage: Stage) -> list[str]:
    return [worker.worker_id for worker in stage.fleet.dispatch.view.ready(Role.DECODE)]
