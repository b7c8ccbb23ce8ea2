"""One replica of the decode pool: announced, asked for health, stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from cluster.engine import EngineRequest, Leg, Role, Sampling
from cluster.errors import WorkerLost
from cluster.wire import request_to_wire
from cluster.worker import State
from decode_workers import deployment
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1.worker_pb2_grpc import WorkerStub
from tests.replica_bench import announced, announced_one, replica_of, simulated_config
from tests.session import SessionCall, open_session
from tests.waiting import eventually


async def test_it_is_announced_while_it_runs_and_gone_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica_of(deployment, "DecodeWorker", simulated_config(), monkeypatch) as (replica, directory):
        record = await announced_one(directory)
        assert record.role is Role.DECODE
        await replica.check_health()
        async with grpc.aio.insecure_channel(record.address) as channel:
            described = await WorkerStub(channel).Describe(pb.DescribeRequest(), timeout=10)
        assert (described.worker_id, described.epoch) == (record.worker_id, record.epoch)
        await replica.stop()
        assert await announced(directory) == ()


async def test_a_dead_engine_makes_it_unhealthy_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica_of(deployment, "DecodeWorker", simulated_config(), monkeypatch) as (replica, _):
        replica._replica.worker._engine.fail("power cut")
        await eventually(lambda: replica._replica.worker.state is State.FAILED)
        with pytest.raises(WorkerLost, match="power cut"):
            await replica.check_health()


async def test_a_drained_worker_leaves_the_directory_and_asks_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica_of(deployment, "DecodeWorker", simulated_config(), monkeypatch) as (replica, directory):
        record = await announced_one(directory)
        async with grpc.aio.insecure_channel(record.address) as channel:
            call = await open_session(WorkerStub(channel), record.epoch)
            await call.write(pb.SessionRequest(drain=pb.Drain(drain_id="a", deadline_s=30, reason="new disk")))
            await eventually(lambda: replica._replica.worker.state is State.DRAINING)
            await replica.check_health()  # not to be killed before its time
            assert [there.worker_id for there in await announced(directory)] == [record.worker_id]
            await eventually(lambda: is_unhealthy(replica))
            with pytest.raises(WorkerLost, match="was drained: new disk"):
                await replica.check_health()
            with pytest.raises(grpc.aio.AioRpcError):
                await WorkerStub(channel).Describe(pb.DescribeRequest(), timeout=5)
        assert await announced(directory) == ()
        await replica.stop()  # as Serve does then


async def is_unhealthy(replica: Any) -> bool:
    try:
        await replica.check_health()
    except WorkerLost:
        return True
    return False


async def test_a_stopped_worker_moves_what_is_open_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    config = simulated_config(decode={"drain_s": 0.5})
    async with replica_of(deployment, "DecodeWorker", config, monkeypatch) as (replica, directory):
        record = await announced_one(directory)
        async with grpc.aio.insecure_channel(record.address) as channel:
            call = await open_session(WorkerStub(channel), record.epoch)
            request = EngineRequest("a", Leg.WHOLE, [1] * 32, Sampling(100_000))
            await call.write(pb.SessionRequest(submit=request_to_wire(request)))
            await eventually(lambda: len(replica._replica.worker.attempts) == 1)
            stopping = [asyncio.create_task(replica.stop()) for _ in range(2)]
            reasons = [
                output.finish_reason
                async for reply in call_until_end(call)
                for output in reply.outputs.outputs
                if output.finish_reason
            ]
        await asyncio.gather(*stopping)
        assert reasons == [pb.FINISH_REASON_MOVED]
        assert await announced(directory) == ()


async def call_until_end(call: SessionCall) -> AsyncIterator[pb.SessionReply]:
    with contextlib.suppress(grpc.aio.AioRpcError):
        while isinstance(reply := await call.read(), pb.SessionReply):
            yield reply


async def test_a_stop_that_is_cancelled_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    config = simulated_config(decode={"drain_s": 0.5})
    async with replica_of(deployment, "DecodeWorker", config, monkeypatch) as (replica, directory):
        await announced_one(directory)
        stopping = asyncio.create_task(replica.stop())
        await eventually(lambda: replica._replica.worker.state is State.DRAINING)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        await asyncio.wait_for(replica.stop(), 10)
        assert await announced(directory) == ()
        assert await is_unhealthy(replica)
