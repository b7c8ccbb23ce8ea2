"""A router's process dies, or stops answering: nothing of it stays on the workers."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.engine import Role
from cluster.rpc_options import SILENT_AFTER_S
from tests.router.router_process import STREAMING
from tests.router.simulated_cluster import SECRET, SimulatedCluster, engine_config
from tests.waiting import eventually

pytestmark = pytest.mark.engine  # processes of its own, killed and frozen

CONFIG = engine_config(step_s=0.005)
POOLS = {"p1": Role.PREFILL, "d1": Role.DECODE, "d2": Role.DECODE}
STREAMS = 12
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimulatedCluster]:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, SECRET)
    cluster = SimulatedCluster(CONFIG)
    for worker_id, role in POOLS.items():
        await cluster.add(worker_id, role)
    try:
        yield cluster
        cluster.check_integrity()
        for running in cluster.workers.values():
            assert (await running.engine.stats()).leases == 0
    finally:
        await cluster.close()


@asynccontextmanager
async def router_on(cluster: SimulatedCluster) -> AsyncIterator[asyncio.subprocess.Process]:
    """Its streams are under way."""
    records = [running.worker.record for running in cluster.workers.values()]
    workers = [f"{r.role.value}:{r.worker_id}:{r.epoch}:{r.address}" for r in records]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.router.router_process",
        str(STREAMS),
        *workers,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).decode().strip() == STREAMING
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def attempts(cluster: SimulatedCluster) -> int:
    return sum(len(running.worker.attempts) for running in cluster.workers.values())


def at_rest(cluster: SimulatedCluster) -> bool:
    return not attempts(cluster) and all(running.idle for running in cluster.workers.values())


async def test_a_router_that_is_killed_leaves_nothing_on_the_workers_after_a_second(cluster: SimulatedCluster) -> None:
    async with router_on(cluster) as router:
        assert attempts(cluster) == STREAMS
        killed = time.monotonic()
        router.kill()
        await eventually(lambda: at_rest(cluster))
        assert time.monotonic() - killed < 1.0


async def test_a_router_that_stops_answering_is_given_up_in_bounded_time(cluster: SimulatedCluster) -> None:
    """Frozen, or cut off: its connections stay open and say nothing."""
    async with router_on(cluster) as router:
        stopped = time.monotonic()
        router.send_signal(signal.SIGSTOP)
        await eventually(lambda: at_rest(cluster), within_s=2 * SILENT_AFTER_S + 5)
        assert time.monotonic() - stopped < SILENT_AFTER_S + 2
        router.send_signal(signal.SIGCONT)
