"""Serve replaces and removes replicas under load: every stream is whole, and exact to the token."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml

from protos.baton.v1 import admin_pb2, admin_pb2_grpc, worker_pb2
from tests.e2e.streaming_load import StreamingLoad
from tests.json_lines import next_object
from tests.live_cluster import ROOT, local_config
from tests.waiting import eventually

pytestmark = [
    pytest.mark.engine,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(580),
]

START_S, CHANGE_S = 240.0, 180.0
VOCABULARY = 2_000
CLIENTS = 12
DRAIN_S = 2.0  # shorter than the long answers, which move


@dataclass
class Cluster:
    process: asyncio.subprocess.Process
    http: str
    channel: grpc.aio.Channel

    async def change(self, **command: Any) -> None:
        """Returns once Serve is at rest."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(CHANGE_S):
            assert await next_object(self.process) == {"done": True}

    async def status(self) -> admin_pb2.StatusResponse:
        admin = admin_pb2_grpc.AdminStub(self.channel)
        return await admin.Status(admin_pb2.StatusRequest(), timeout=10, wait_for_ready=True)

    async def drain(self, worker_id: str, deadline_s: float) -> None:
        asked = admin_pb2.DrainRequest(worker_id=worker_id, deadline_s=deadline_s)
        await admin_pb2_grpc.AdminStub(self.channel).Drain(asked, timeout=5)

    async def workers(self) -> dict[str, worker_pb2.WorkerDescription]:
        return {worker.description.worker_id: worker.description for worker in (await self.status()).workers}

    async def quiet(self) -> bool:
        status = await self.status()
        left = [(w.description.load.running, w.description.load.leases) for w in status.workers]
        return status.router.in_flight == 0 and not any(running or leases for running, leases in left)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    pool = {"replicas": 2, "drain_s": DRAIN_S}
    config = local_config(
        demo_model,
        "rolling",
        engine={"kind": "simulated", "options": {}, "simulated": {"step_s": 0.01, "vocabulary": VOCABULARY}},
        prefill=pool,
        decode=pool | {"replicas": 3},
    )
    config["router"] |= {"surge_percent": 100, "request_deadline_s": 30.0}
    path = tmp_path_factory.mktemp("rolling") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    pipe = asyncio.subprocess.PIPE
    arguments = ["-m", "tests.e2e.redeployed_cluster", str(path)]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe, cwd=ROOT)
    router = config["router"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{router['grpc_port']}") as channel:
        cluster = Cluster(process, f"http://127.0.0.1:{router['http_port']}", channel)
        try:
            async with asyncio.timeout(START_S):
                assert await next_object(cluster.process) == {"ready": True}
            yield cluster
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(90):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


async def test_a_new_version_replaces_every_pool_and_the_router_and_no_request_fails(serving: Cluster) -> None:
    before, router = set(await serving.workers()), (await serving.status()).router_id
    load = StreamingLoad(serving.http, serving.channel, VOCABULARY)
    async with load.clients(CLIENTS):
        await load.until(answers=CLIENTS)
        await serving.change(deploy={"observability": {"log_level": "warning"}})
        await load.until(answers=CLIENTS)
    assert load.failed == []
    after = await serving.workers()
    assert len(after) == len(before)
    assert not before & set(after)
    assert (await serving.status()).router_id != router
    await eventually(serving.quiet)


async def test_what_no_worker_reads_changes_under_load_without_the_end_of_a_worker(serving: Cluster) -> None:
    before, router = set(await serving.workers()), (await serving.status()).router_id
    load = StreamingLoad(serving.http, serving.channel, VOCABULARY)
    async with load.clients(CLIENTS):
        await load.until(answers=CLIENTS)
        await serving.change(deploy={"admission": {"queue": {"max_requests": 300}}, "decode": {"replicas": 2}})
        await load.until(answers=CLIENTS)
    assert load.failed == []
    after = set(await serving.workers())
    assert after < before, "a worker was replaced"
    assert len(before - after) == 1
    assert (await serving.status()).router_id != router
    await eventually(serving.quiet)


async def test_pools_shrink_under_load_and_no_request_fails(serving: Cluster) -> None:
    load = StreamingLoad(serving.http, serving.channel, VOCABULARY)
    async with load.clients(CLIENTS):
        await load.until(answers=CLIENTS)
        await serving.change(scale={"decode": 1, "prefill": 1})
        await load.until(answers=CLIENTS)
    assert load.failed == []
    assert len(await serving.workers()) == 2
    await eventually(serving.quiet)


async def test_a_worker_that_an_operator_drains_is_replaced_under_load(serving: Cluster) -> None:
    victim = next(id_ for id_, worker in (await serving.workers()).items() if worker.role == worker_pb2.ROLE_DECODE)
    load = StreamingLoad(serving.http, serving.channel, VOCABULARY)

    async def replaced() -> bool:
        workers = await serving.workers()
        return victim not in workers and len(workers) == 2

    async with load.clients(CLIENTS):
        await load.until(answers=CLIENTS)
        await serving.drain(victim, deadline_s=1.0)
        await eventually(replaced, within_s=60)
        await load.until(answers=CLIENTS)
    assert load.failed == []
    await eventually(serving.quiet)
