"""A cluster whose parts speak TLS: requests are served over it, and no port of it answers anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from cluster.clock import RealClock
from cluster.config import Config, RouterConfig, parse_config
from cluster.engine import Role
from cluster.rpc_options import CHANNEL_OPTIONS
from cluster.tls import PLAIN, Channels, TlsChannels, TlsFiles, cluster_channels, public_channels
from protos.baton.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from router.defence import Defence
from router.fleet import Fleet
from router.grpc_edge import GrpcEdge
from router.guard import Guard
from router.lease_listing import LeaseListing
from tests.certificates import Authority
from tests.router.dispatch_parts import parts
from tests.router.simulated_cluster import SECRET, Clients, SimulatedCluster, engine_config, expected_tokens
from tests.router.test_grpc_edge import NoAdmin, Script
from tests.waiting import eventually

PROMPT = list(range(1, 100))


@dataclass
class Stage:
    config: Config
    cluster: SimulatedCluster
    fleet: Fleet
    clients: Clients
    edge_port: int
    authority: Authority
    channels: Channels

    def worker_ports(self) -> list[int]:
        return [running.port for running in self.cluster.workers.values()]


def encrypted(authority: Authority) -> Config:
    ours, public = authority.sign("baton"), authority.sign("router")
    security = {
        "tls": {"cert": public.cert, "key": public.key},
        "cluster_tls": {"cert": ours.cert, "key": ours.key, "ca": authority.path},
    }
    plain = engine_config(step_s=0.002).model_dump(mode="json", exclude={"security"})
    return parse_config(plain | {"security": security})


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    authority = Authority(tmp_path)
    config = encrypted(authority)
    monkeypatch.setenv(config.security.ticket_secret_env, SECRET)
    cluster, channels = SimulatedCluster(config), cluster_channels(config.security.cluster_tls)
    clock = RealClock()
    fleet = Fleet(RouterConfig(), cluster.directory, clock, "router-1", 7, parts(clock.now), channels=channels)
    clients = Clients(fleet.dispatch, "c")
    edge = GrpcEdge(
        RouterConfig(grpc_port=0), Script(), NoAdmin(), defence=Defence(Guard(), public_channels(config.security.tls))
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await cluster.add("p1", Role.PREFILL)
        await cluster.add("d1", Role.DECODE)
        port = await edge.start()
        stack.push_async_callback(edge.close, 0)
        await fleet.start()
        stack.push_async_callback(fleet.close)
        await eventually(lambda: len(list(fleet.dispatch.view)) == 2)
        yield Stage(config, cluster, fleet, clients, port, authority, channels)


async def test_requests_are_served_and_blocks_handed_over(stage: Stage) -> None:
    answer = await stage.clients.ask(PROMPT, 8)
    assert answer.error is None
    assert answer.tokens == expected_tokens(PROMPT, 8, stage.config.engine.simulated.vocabulary)
    assert stage.fleet.dispatch.counters().disaggregated == 1
    reports = await stage.fleet.describe()
    assert all(report.description is not None for report in reports)
    moved = [t for report in reports if report.description for t in report.description.counters.transfers]
    assert sum(each.blocks for each in moved if each.outcome == "landed") >= len(PROMPT) // 16


async def test_leases_are_asked_for_over_it_too(stage: Stage) -> None:
    lease = stage.cluster.workers["p1"].engine._handoff
    assert lease is not None
    lease.offer("a", 10, [])
    told = {worker.worker_id: worker for worker in await LeaseListing(stage.fleet).find("")}
    assert {worker.unreachable for worker in told.values()} == {""}
    assert [each.state for each in told["p1"].leases] == ["offered"]


async def test_no_port_that_is_open_answers_in_plain_text(stage: Stage) -> None:
    await stage.clients.ask(PROMPT, 2)
    listening = [
        each.laddr.port for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN
    ]
    assert {*stage.worker_ports(), stage.edge_port} < set(listening)
    assert len(listening) >= 5, "two workers, the KvSource of each, and the router"
    assert await asyncio.gather(*(serves(PLAIN, port) for port in listening)) == [False] * len(listening)
    assert await asyncio.gather(*(serves(stage.channels, port) for port in stage.worker_ports())) == [True, True]


async def serves(channels: Channels, port: int) -> bool:
    """Whether anything there speaks gRPC, whatever it thinks of the call."""
    async with channels.dial(f"127.0.0.1:{port}", CHANNEL_OPTIONS) as channel:
        try:
            await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE
    return True


async def test_a_worker_obeys_nobody_without_a_certificate_of_the_cluster(stage: Stage, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").sign("stranger")
    foreign = TlsChannels(TlsFiles(stranger.cert, stranger.key, stage.authority.path, "baton"))
    for port in stage.worker_ports():
        assert not await serves(foreign, port)


async def test_users_see_the_routers_own_certificate_and_need_none(stage: Stage) -> None:
    trusted = grpc.ssl_channel_credentials(await asyncio.to_thread(Path(stage.authority.path).read_bytes))
    async with grpc.aio.secure_channel(f"127.0.0.1:{stage.edge_port}", trusted) as channel:
        listed = await inference_pb2_grpc.InferenceStub(channel).ListModels(
            inference_pb2.ListModelsRequest(), timeout=10
        )
    assert [model.id for model in listed.models] == ["demo"]
