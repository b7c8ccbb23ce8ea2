"""The prefill pool in a real Serve application, with simulated engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import grpc
import pytest

from cluster.config import parse_config
from cluster.engine import Role
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1.worker_pb2_grpc import WorkerStub
from tests.ray_cluster import ray_cluster

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

NAME = "prefill-test"
RAW = {"name": NAME, "model": {"path": "none"}, "engine": {"kind": "simulated"}, "prefill": {"drain_s": 5.0}}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with ray_cluster(NAME, BATON_TICKET_SECRET="0123456789abcdef0123"):
        yield


async def members(count: int) -> list[str]:
    from cluster.directory import RayDirectory

    async with asyncio.timeout(60):
        async for membership in RayDirectory(NAME).watch():
            if len(membership.workers) == count:
                assert all(record.role is Role.PREFILL for record in membership.workers)
                return [record.address for record in membership.workers]
    raise AssertionError("the directory ended")


async def describe(address: str) -> pb.WorkerDescription:
    async with grpc.aio.insecure_channel(address) as channel:
        return await WorkerStub(channel).Describe(pb.DescribeRequest(), timeout=10)


async def test_each_replica_is_a_ready_worker_that_leaves_when_it_is_stopped() -> None:
    from ray import serve

    from prefill_workers.deployment import deployment

    config = parse_config(RAW | {"prefill": {"replicas": 2, "drain_s": 5.0}})
    await asyncio.to_thread(serve.run, deployment(config, "deploy.scaling_policy:PoolLoadPolicy"), name=NAME)
    addresses = await members(2)
    for address in addresses:
        description = await describe(address)
        assert (description.role, description.state) == (pb.ROLE_PREFILL, pb.WORKER_STATE_READY)
    await asyncio.to_thread(serve.delete, NAME)
    await members(0)
    for address in addresses:
        with pytest.raises(grpc.aio.AioRpcError):
            await describe(address)


def test_a_replica_that_cannot_start_tells_serve_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    from prefill_workers.deployment import deployment

    config = parse_config(RAW | {"security": {"ticket_secret_env": "BATON_NO_SUCH_SECRET"}})
    serve._run(deployment(config, "deploy.scaling_policy:PoolLoadPolicy"), name="bad", _blocking=False)
    give_up = time.monotonic() + 60
    message = ""
    while "BATON_NO_SUCH_SECRET" not in message:
        assert time.monotonic() < give_up, f"last message: {message}"
        time.sleep(0.2)
        app = serve.status().applications.get("bad")
        message = "" if app is None else " ".join([app.message, *(d.message for d in app.deployments.values())])
    serve.delete("bad")
