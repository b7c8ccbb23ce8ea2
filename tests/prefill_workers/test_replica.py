"""One replica of the prefill pool: a start that fails, a stop in the middle of the start."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cluster.engine import EngineInfo
from cluster.errors import EngineFailed
from cluster.simulated_engine import SimulatedEngine
from prefill_workers import deployment
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1.worker_pb2_grpc import WorkerStub
from tests.ipv6 import NEEDS_IPV6
from tests.replica_bench import announced_one, replica_of, simulated_config


async def test_a_start_that_fails_passes_on_the_engines_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: SimulatedEngine) -> EngineInfo:
        raise EngineFailed("ValueError: model path /nowhere does not exist")

    monkeypatch.setattr(SimulatedEngine, "start", fail)
    with pytest.raises(EngineFailed, match="/nowhere does not exist"):
        async with replica_of(deployment, "PrefillWorker", simulated_config(), monkeypatch):
            pass


async def test_a_stop_during_the_start_ends_the_engine_and_announces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, closed = asyncio.Event(), asyncio.Event()

    async def hang(self: SimulatedEngine) -> EngineInfo:
        starting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def note(self: SimulatedEngine) -> None:
        closed.set()

    monkeypatch.setattr(SimulatedEngine, "start", hang)
    monkeypatch.setattr(SimulatedEngine, "close", note)
    bench = replica_of(deployment, "PrefillWorker", simulated_config(), monkeypatch)
    made: list[object] = []
    original = deployment.PrefillWorker.__init__

    async def keep(self: object, config: object) -> None:
        made.append(self)
        await original(self, config)  # type: ignore[arg-type]

    monkeypatch.setattr(deployment.PrefillWorker, "__init__", keep)
    entering = asyncio.create_task(bench.__aenter__())
    await asyncio.wait_for(starting.wait(), 10)
    (replica,) = made
    await replica.stop()  # type: ignore[attr-defined]
    assert closed.is_set()
    with pytest.raises(asyncio.CancelledError):
        await entering


@pytest.mark.parametrize(
    "host", ["0.0.0.0", pytest.param("::", marks=NEEDS_IPV6), pytest.param("[::]", marks=NEEDS_IPV6)]
)
async def test_a_wildcard_is_announced_as_the_address_of_its_machine(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = simulated_config(prefill={"listen_host": host}, security={"allow_open": True})
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.2")
    async with replica_of(deployment, "PrefillWorker", config, monkeypatch) as (_, directory):
        record = await announced_one(directory)
        assert record.address.startswith("127.0.0.2:")


@NEEDS_IPV6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_an_ipv6_address_is_announced_as_it_can_be_dialled(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = simulated_config(prefill={"listen_host": host})
    async with replica_of(deployment, "PrefillWorker", config, monkeypatch) as (_, directory):
        record = await announced_one(directory)
        assert record.address.startswith("[::1]:")
        async with grpc.aio.insecure_channel(record.address) as channel:
            described = await WorkerStub(channel).Describe(pb.DescribeRequest(), timeout=10)
        assert described.worker_id == record.worker_id
