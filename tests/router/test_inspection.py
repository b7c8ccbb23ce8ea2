"""What an operator is listed of a router: requests, leases, events, caches and the configuration, over real gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from cluster.clock import RealClock
from cluster.config import Config, RouterConfig
from cluster.engine import Role
from protos.baton.v1 import admin_pb2 as pb
from protos.baton.v1 import worker_pb2
from protos.baton.v1.admin_pb2_grpc import AdminStub, add_AdminServicer_to_server
from router.admin_service import AdminService
from router.fleet import Fleet
from router.inspection import Inspection
from tests.router.dispatch_parts import BLOCK_TOKENS, new_journal, parts
from tests.router.simulated_cluster import SECRET, Clients, SimulatedCluster, engine_config
from tests.waiting import eventually

if TYPE_CHECKING:
    from protos.baton.v1.admin_pb2_grpc import AdminAsyncStub  # of the stubs alone

CONFIG = engine_config(step_s=0.005)
PROMPT = list(range(6 * BLOCK_TOKENS))
CALL_S = 10.0


class Stage:
    def __init__(self, config: Config) -> None:
        self.cluster = SimulatedCluster(config)
        self.journal = new_journal()
        made = parts(RealClock().now, journal=self.journal)
        router = RouterConfig(worker_deadline_s=2.0)
        self.fleet = Fleet(router, self.cluster.directory, RealClock(), "router-1", 7, made)
        self.clients = Clients(self.fleet.dispatch, "client")
        inspection = Inspection("router-1", self.fleet, self.journal, made.journal, config)
        self.admin = AdminService(self.fleet, "router-1", "demo", inspection=inspection)
        self.stub: AdminAsyncStub

    async def add(self, worker_id: str, role: Role) -> None:
        await self.cluster.add(worker_id, role)
        await eventually(lambda: self.fleet.dispatch.view.get(worker_id) is not None)

    async def kinds(self) -> list[tuple[str, str]]:
        told = await self.stub.ListEvents(pb.ListEventsRequest(), timeout=CALL_S)
        return [(event.kind, event.worker_id) for event in told.events]

    async def cache(self) -> pb.CacheResponse:
        return await self.stub.Cache(pb.CacheRequest(), timeout=CALL_S)


@asynccontextmanager
async def on_stage(monkeypatch: pytest.MonkeyPatch, config: Config = CONFIG) -> AsyncIterator[Stage]:
    monkeypatch.setenv("BATON_TICKET_SECRET", SECRET)
    stage = Stage(config)
    await stage.fleet.start()
    server = grpc.aio.server()
    add_AdminServicer_to_server(stage.admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stage.stub = AdminStub(channel)
            await stage.add("p", Role.PREFILL)
            await stage.add("d", Role.DECODE)
            yield stage
    finally:
        await stage.fleet.close()
        await stage.cluster.close()
        await server.stop(None)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async with on_stage(monkeypatch) as stage:
        yield stage


async def test_requests_that_run_come_first_and_filters_hold(stage: Stage) -> None:
    done = await stage.clients.ask(PROMPT, 3, "acme")
    other = await stage.clients.ask(PROMPT[:40], 3, "zeta")
    runs = stage.clients.open(PROMPT, 500, "acme")
    await eventually(lambda: bool(runs.tokens))

    async def ids(**asked: object) -> list[str]:
        told = await stage.stub.ListRequests(pb.ListRequestsRequest(**asked), timeout=CALL_S)  # type: ignore[arg-type]
        return [request.request_id for request in told.requests]

    assert await ids() == [runs.request_id, other.request_id, done.request_id]
    assert await ids(tenant="acme") == [runs.request_id, done.request_id]
    assert await ids(state="running") == [runs.request_id]
    assert await ids(state="completed", limit=1) == [other.request_id]
    assert await ids(worker_id="p") == [runs.request_id, other.request_id, done.request_id]
    assert await ids(worker_id="nobody") == []
    told = await stage.stub.ListRequests(pb.ListRequestsRequest(state="completed", tenant="acme"), timeout=CALL_S)
    (request,) = told.requests
    assert (request.prefill_worker, request.decode_worker, request.output_tokens) == ("p", "d", 3)
    assert (request.prompt_tokens, request.cached_tokens, request.attempts) == (len(PROMPT), 0, 2)
    assert 0 < request.actual.ttft_s <= request.duration_s
    stage.clients.give_up([runs])


async def test_leases_name_their_worker_and_an_unknown_one_is_told_the_nearest(stage: Stage) -> None:
    stage.cluster.workers["d"].engine.fail("it reads nothing")  # so that the lease stays
    lease = stage.cluster.workers["p"].engine._handoff
    assert lease is not None
    lease.offer("a", 10, [])
    told = await stage.stub.ListLeases(pb.ListLeasesRequest(worker_id="p"), timeout=CALL_S)
    ((worker,), (shown,)) = told.workers, told.workers[0].leases
    assert (worker.worker_id, worker.role, worker.unreachable) == ("p", worker_pb2.ROLE_PREFILL, "")
    assert (shown.state, shown.reader_id, len(shown.lease)) == ("offered", "", 8)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.ListLeases(pb.ListLeasesRequest(worker_id="pp"), timeout=CALL_S)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "did you mean p?" in (refused.value.details() or "")


async def test_a_worker_without_a_session_is_listed_with_the_reason_and_not_left_out(stage: Stage) -> None:
    await stage.cluster.crash("d")
    await eventually(lambda: stage.fleet.dispatch.view.get("d") is None)
    for asked in ("d", ""):
        leases = await stage.stub.ListLeases(pb.ListLeasesRequest(worker_id=asked), timeout=CALL_S)
        flushes = await stage.stub.FlushCache(pb.FlushCacheRequest(worker_id=asked), timeout=CALL_S)
        (listed,) = [worker for worker in leases.workers if worker.worker_id == "d"]
        (flush,) = [worker for worker in flushes.workers if worker.worker_id == "d"]
        assert "no session" in listed.unreachable
        assert "no session" in flush.reason
        assert not flush.flushed


async def test_who_came_and_who_was_lost_is_seen_with_the_requests_that_moved(stage: Stage) -> None:
    answer = stage.clients.open(PROMPT, 400)
    await eventually(lambda: len(answer.tokens) > 2)
    await stage.add("d2", Role.DECODE)
    await stage.cluster.crash("d")
    await eventually(lambda: stage.fleet.dispatch.view.get("d") is None)
    kinds = await stage.kinds()
    assert kinds[:3] == [("joined", "p"), ("joined", "d"), ("joined", "d2")]
    assert set(kinds[3:]) >= {("left", "d"), ("recovered", "d")}
    told = await stage.stub.ListEvents(pb.ListEventsRequest(after=3), timeout=CALL_S)
    moved = next(event for event in told.events if event.kind == "recovered")
    assert (moved.request_id, moved.role) == (answer.request_id, worker_pb2.ROLE_DECODE)
    assert moved.reason
    stage.clients.give_up([answer])


async def test_prompts_that_were_found_are_counted_and_a_flush_empties_worker_and_index(stage: Stage) -> None:
    for _ in range(2):
        await stage.clients.ask(PROMPT, 2)
    counted = await stage.cache()
    assert (counted.requests, counted.prompt_tokens) == (2, 2 * len(PROMPT))
    assert 0 < counted.cached_tokens < len(PROMPT)
    await eventually(lambda: stage.cluster.workers["p"].idle and stage.cluster.workers["d"].idle)
    told = await stage.stub.FlushCache(pb.FlushCacheRequest(role=worker_pb2.ROLE_PREFILL), timeout=CALL_S)
    assert [(each.worker_id, each.flushed, each.reason) for each in told.workers] == [("p", True, "")]
    assert (stage.cluster.workers["p"].held, bool(stage.cluster.workers["d"].held)) == (frozenset(), True)

    async def followed() -> bool:
        held = {worker.worker_id: worker.held_blocks for worker in (await stage.cache()).workers}
        return held["p"] == 0 and held["d"] > 0

    await eventually(followed)
    assert ("flushed", "p") in await stage.kinds()
    again = await stage.clients.ask(PROMPT, 2)
    assert again.error is None


async def test_a_worker_with_work_keeps_its_cache_and_its_request(stage: Stage) -> None:
    answer = stage.clients.open(PROMPT, 100)
    await eventually(lambda: len(answer.tokens) > 2)
    told = await stage.stub.FlushCache(pb.FlushCacheRequest(worker_id="d"), timeout=CALL_S)
    (flush,) = told.workers
    assert not flush.flushed
    assert "in use" in flush.reason
    async with asyncio.timeout(30):
        await answer.ended.wait()
    assert (answer.error, len(answer.tokens)) == (None, 100)


async def test_the_configuration_is_told_with_what_its_file_named(stage: Stage) -> None:
    told = await stage.stub.ShowConfig(pb.ShowConfigRequest(), timeout=CALL_S)
    effective, given = json.loads(told.effective_json), json.loads(told.given_json)
    assert given["engine"]["kind"] == effective["engine"]["kind"] == "simulated"
    assert "router" not in given
    assert effective["router"]["grpc_port"] == 9000


async def test_a_router_that_lists_nothing_says_so() -> None:
    fleet: Fleet = None  # type: ignore[assignment]  # it is not asked
    server = grpc.aio.server()
    add_AdminServicer_to_server(AdminService(fleet, "router-1", "demo"), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await AdminStub(channel).Cache(pb.CacheRequest(), timeout=CALL_S)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)
