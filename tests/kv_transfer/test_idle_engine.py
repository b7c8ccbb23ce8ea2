"""The connector inside vLLM's own engine-core process: what happens while the engine has nothing to do."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from cluster.config import EngineConfig, ModelConfig
from cluster.config_transfer import KvTransferConfig
from cluster.engine import EngineRequest, Leg, Role, Sampling
from kv_transfer.engine_link import EngineLink
from kv_transfer.engine_settings import connector_settings, kv_transfer_config
from protos.baton.v1 import kv_pb2

SECRET_ENV = "BATON_TICKET_SECRET"
PROMPT = list(range(10, 110))

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


def new_engine(model: Path, folder: Path, lease_s: float) -> Any:
    from cluster.vllm_environment import prepare_environment

    os.environ[SECRET_ENV] = "a secret that only the tests know"
    spec = ModelConfig(path=str(model), max_model_len=1024, dtype="float32")
    engine = EngineConfig(kv_cache_mib=64, options={"enforce_eager": True})
    prepare_environment(spec, engine)
    from cluster.vllm_core import VllmSpec
    from cluster.vllm_engine import VllmEngine

    settings = connector_settings(
        KvTransferConfig(lease_s=lease_s),
        worker_id="prefill-0",
        epoch=1,
        listen_host="127.0.0.1",
        advertise_host="127.0.0.1",
        announce_path=str(folder / "connector.json"),
        secret_env=SECRET_ENV,
    )
    transfer = kv_transfer_config(settings, Role.PREFILL)
    return VllmEngine(
        VllmSpec(spec, engine, engine.options, kv_transfer=transfer), EngineLink(folder / "connector.json")
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    made = new_engine(demo_model, tmp_path_factory.mktemp("engine"), lease_s=2.0)
    await made.start()
    yield made
    await made.close()


async def prefill(engine: Any, attempt_id: str) -> kv_pb2.Ticket:
    from vllm import SamplingParams

    from cluster.vllm_params import encode_params

    params = encode_params(SamplingParams(temperature=0.0))
    await engine.submit(EngineRequest(attempt_id, Leg.PREFILL, PROMPT, Sampling(1), params))
    async with asyncio.timeout(60):
        while True:
            for output in await engine.step():
                if output.finish_reason is not None:
                    return kv_pb2.Ticket.FromString(output.ticket)


async def test_an_idle_engine_takes_released_blocks_back_when_it_is_asked(engine: Any) -> None:
    ticket = await prefill(engine, "a")
    stats = await engine.stats()
    assert (stats.leases, stats.pinned_blocks) == (1, 4)
    await engine.release(ticket.lease_id)
    await engine.settle()
    stats = await engine.stats()
    assert (stats.leases, stats.pinned_blocks, stats.leases_released) == (0, 0, 1)


async def test_an_idle_engine_takes_expired_blocks_back_when_it_is_asked(engine: Any) -> None:
    await prefill(engine, "b")
    before = await engine.stats()
    stats, end = before, time.monotonic() + 20
    while stats.leases and time.monotonic() < end:
        stats = await engine.stats()
    await engine.settle()
    stats = await engine.stats()
    assert (stats.leases, stats.pinned_blocks, stats.leases_expired) == (0, 0, before.leases_expired + 1)


async def test_an_engine_that_waits_for_readers_is_nearly_idle(engine: Any) -> None:
    """A lease must not keep the engine stepping, and serving readers must not spin."""
    await prefill(engine, "c")
    core = psutil.Process().children()
    used = [sum(process.cpu_times()[:2]) for process in core]
    await asyncio.sleep(1.5)
    assert sum(sum(process.cpu_times()[:2]) for process in core) - sum(used) < 0.15


async def test_the_source_of_the_ticket_is_where_the_engine_says_it_listens(engine: Any) -> None:
    ticket = await prefill(engine, "d")
    assert ticket.source == await engine._link.address()
    assert ticket.fingerprint == await engine._link.fingerprint()
    await engine.release(ticket.lease_id)


def own_an_engine(pipe: Connection, model: Path, folder: Path) -> None:
    async def run() -> None:
        engine = new_engine(model, folder, lease_s=2.0)
        await engine.start()
        pipe.send([child.pid for child in psutil.Process().children(recursive=True)])
        await asyncio.sleep(300)

    asyncio.run(run())


async def test_an_engine_core_dies_with_its_owner(demo_model: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    owner = spawn.Process(target=own_an_engine, args=(there, demo_model, tmp_path))
    owner.start()
    assert await asyncio.to_thread(here.poll, 200)
    processes = [psutil.Process(pid) for pid in here.recv()]
    assert processes
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 15)
    assert alive == []
