"""A worker whose whole process is stopped in mid-stream: its connections stand, and nothing comes over them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.engine import Role, Sampling
from cluster.membership import MemoryDirectory, WorkerRecord
from cluster.rpc_options import SILENT_AFTER_S as PINGED_S
from cluster.worker import Worker, WorkerSpec
from kv_transfer.worker_engine import build_engine
from protos.baton.v1 import worker_pb2, worker_pb2_grpc
from router.fleet import Fleet
from router.generation import GenerationRequest
from tests.router.dispatch_parts import parts
from tests.router.simulated_cluster import TTL_S, engine_config, expected_tokens
from tests.router.test_fleet import Listener
from tests.waiting import eventually

SILENT_AFTER_S = 0.6
PROMPT = list(range(700, 740))
TOKENS = 300
CONFIG = engine_config(step_s=0.01, vocabulary=1_000)
SECRET = "a secret that only the tests know"


@contextmanager
def worker_process(worker_id: str, role: Role) -> Iterator[tuple[int, WorkerRecord]]:
    """Its process id, and what it announces."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, worker_id, role), daemon=True)
    process.start()
    try:
        assert here.poll(30), "the worker's process does not come up"
        address = here.recv()
        assert process.pid is not None
        yield process.pid, WorkerRecord(worker_id, role, 1, address)
    finally:
        process.kill()
        process.join()
        here.close()


def _serve(pipe: Connection, worker_id: str, role: Role) -> None:
    os.environ[CONFIG.security.ticket_secret_env] = SECRET

    async def serve() -> None:
        spec = WorkerSpec(worker_id, role, 1, look_every_s=0.1)
        worker = Worker(
            spec, await build_engine(CONFIG, CONFIG.prefill, RealClock(), spec, Path("unused")), RealClock()
        )
        await worker.start()
        pipe.send(worker.record.address)
        await asyncio.Event().wait()

    asyncio.run(serve())


@asynccontextmanager
async def fleet_of(
    *records: WorkerRecord, worker_deadline_s: float = 1.0, silent_after_s: float = SILENT_AFTER_S
) -> AsyncIterator[tuple[Fleet, Listener]]:
    directory, listener = MemoryDirectory(RealClock()), Listener()
    config = RouterConfig(silent_after_s=silent_after_s, worker_deadline_s=worker_deadline_s)
    fleet = Fleet(config, directory, RealClock(), "router-1", 7, parts(RealClock().now))
    fleet.dispatch.connect(listener)
    for record in records:
        await directory.announce(record, TTL_S)
    await fleet.start()
    try:
        await eventually(lambda: len(list(fleet.dispatch.view)) == len(records))
        yield fleet, listener
        fleet.check()
    finally:
        await fleet.close()
        fleet.dispatch.check_integrity()


async def described(record: WorkerRecord) -> worker_pb2.WorkerDescription:
    async with grpc.aio.insecure_channel(record.address) as channel:
        return await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=5)


async def idle(record: WorkerRecord) -> bool:
    about = await described(record)
    ready = about.state == worker_pb2.WORKER_STATE_READY
    return ready and not (about.load.running or about.load.waiting or about.load.kv_usage)


@pytest.mark.engine  # two processes to start
@pytest.mark.timeout(90)
async def test_the_stream_of_a_stopped_process_goes_on_elsewhere_and_it_comes_back_with_nothing_left() -> None:
    with worker_process("d1", Role.DECODE) as (one, first), worker_process("d2", Role.DECODE) as (two, second):
        processes, records = {"d1": one, "d2": two}, {"d1": first, "d2": second}
        async with fleet_of(first, second) as (fleet, listener):
            fleet.dispatch.submit(GenerationRequest("a", PROMPT, Sampling(TOKENS)))
            await listener.until_tokens("a", 20)
            (stopped,) = [worker.worker_id for worker in fleet.dispatch.view if not worker.idle]
            os.kill(processes[stopped], signal.SIGSTOP)
            begin, before = time.monotonic(), len(listener.tokens["a"])
            await listener.until_tokens("a", before + 100)  # more than can have been under way
            assert time.monotonic() - begin < SILENT_AFTER_S + 3.0
            assert fleet.dispatch.view.get(stopped) is None
            await listener.until_ended("a")
            assert listener.tokens["a"] == expected_tokens(PROMPT, TOKENS, 1_000)
            assert dict(fleet.dispatch.counters().recoveries) == {"stalled": 1}

            os.kill(processes[stopped], signal.SIGCONT)
            await eventually(lambda: stopped in {worker.worker_id for worker in fleet.dispatch.view}, within_s=20)
            await eventually(lambda: idle(records[stopped]), within_s=20)
            other = next(worker_id for worker_id in processes if worker_id != stopped)
            fleet.dispatch.set_ready(other, False)
            fleet.dispatch.submit(GenerationRequest("b", PROMPT, Sampling(20)))
            await listener.until_ended("b")
            assert listener.tokens["b"] == expected_tokens(PROMPT, 20, 1_000)
            outcomes = (await described(records[stopped])).counters.attempts_by_outcome
            assert dict(outcomes) == {"abort": 1, "length": 1}


@pytest.mark.engine  # a process to start
@pytest.mark.timeout(90)
async def test_the_stream_of_an_only_worker_that_stood_still_goes_on_when_it_is_back() -> None:
    with worker_process("d1", Role.DECODE) as (process, record):
        async with fleet_of(record, worker_deadline_s=20.0) as (fleet, listener):
            fleet.dispatch.submit(GenerationRequest("a", PROMPT, Sampling(TOKENS)))
            await listener.until_tokens("a", 20)
            os.kill(process, signal.SIGSTOP)
            await eventually(lambda: fleet.dispatch.view.get("d1") is None, within_s=20)
            assert fleet.dispatch.counters().in_flight == 1
            os.kill(process, signal.SIGCONT)
            await listener.until_ended("a")
            assert listener.tokens["a"] == expected_tokens(PROMPT, TOKENS, 1_000)
            assert dict(fleet.dispatch.counters().recoveries) == {"stalled": 1}
            await eventually(lambda: idle(record), within_s=20)


@pytest.mark.engine  # a process to start
@pytest.mark.timeout(90)
async def test_a_stop_shorter_than_the_silence_that_is_allowed_moves_nothing() -> None:
    with worker_process("d1", Role.DECODE) as (process, record):
        async with fleet_of(record, silent_after_s=60.0) as (fleet, listener):
            fleet.dispatch.submit(GenerationRequest("a", PROMPT, Sampling(TOKENS)))
            await listener.until_tokens("a", 20)
            os.kill(process, signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                await eventually(lambda: fleet.dispatch.view.get("d1") is None, within_s=PINGED_S + 2)
            os.kill(process, signal.SIGCONT)
            await listener.until_ended("a")
            assert listener.tokens["a"] == expected_tokens(PROMPT, TOKENS, 1_000)
            assert dict(fleet.dispatch.counters().recoveries) == {}
