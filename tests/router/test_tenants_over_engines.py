"""Tenants under overload from the router's dispatch down to batches of simulated engines, on a virtual clock: shares
follow weights, a flood stays its sender's own trouble. Only the network is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest

from cluster.clock import VirtualClock
from cluster.config import RouterConfig
from cluster.engine import Role, TransferRung
from cluster.simulated_engine import SimulatedEngine
from cluster.worker import Worker, WorkerSpec
from cluster.worker_session import Session
from protos.baton.v1 import kv_pb2
from protos.baton.v1 import worker_pb2 as pb
from router.dispatch import Dispatch
from router.fleet import DEADLINE_CHECK_S
from tests.cluster.handoff_in_memory import MemoryHandoff
from tests.router.dispatch_parts import parts
from tests.router.simulated_cluster import Clients
from tests.router.tenant_load import (
    DECODE,
    POOLS,
    PREFILL,
    WEIGHTS,
    Load,
    gate_for,
    overload,
    quantile,
    share_error,
    shares_of,
    victim,
)

CAPACITY_S, OVERLOAD_S, ROUND_S = 8.0, 20.0, 20.0
pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]  # no engine of vLLM, but as slow
CONFIGS = {Role.PREFILL: PREFILL, Role.DECODE: DECODE}


class SealedHandoff(MemoryHandoff):
    """Its tickets are what a router reads."""

    def offer(self, attempt_id: str, num_tokens: int, block_ids: Sequence[int]) -> bytes:
        bare = super().offer(attempt_id, num_tokens, block_ids).decode()
        lease_id = bare.rpartition(":")[0]
        return kv_pb2.Ticket(attempt_id=attempt_id, lease_id=lease_id, num_tokens=num_tokens).SerializeToString()

    def tokens_in(self, ticket: bytes) -> int:
        return kv_pb2.Ticket.FromString(ticket).num_tokens

    async def pull(self, ticket: bytes, missing_blocks: int) -> tuple[TransferRung, ...]:
        opened = kv_pb2.Ticket.FromString(ticket)
        return await super().pull(f"{opened.lease_id}:{opened.num_tokens}".encode(), missing_blocks)


class Line:
    """Both directions of the router's session at one worker, without a wire."""

    def __init__(self, worker: Worker, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._worker_id = worker.spec.worker_id
        self._messages: asyncio.Queue[pb.SessionRequest] = asyncio.Queue()
        self.send(pb.SessionRequest(hello=pb.Hello(router_id="r", epoch=worker.epoch)))
        self._session = asyncio.create_task(Session(worker).run(aiter(self), cast(Any, self)))

    def send(self, message: pb.SessionRequest) -> None:
        self._messages.put_nowait(message)

    async def __aiter__(self) -> AsyncIterator[pb.SessionRequest]:
        while True:
            yield await self._messages.get()

    async def write(self, reply: pb.SessionReply) -> None:
        if reply.HasField("welcome"):
            self._dispatch.worker_up(reply.welcome.worker)
        else:
            self._dispatch.on_step(self._worker_id, reply.outputs)

    async def close(self) -> None:
        self._session.cancel()
        await asyncio.gather(self._session, return_exceptions=True)


class Cluster:
    """One router's dispatch and all its workers."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.clock = VirtualClock()
        made = parts(self.clock.now, gate=gate_for(weights, self.clock.now))
        self.dispatch = Dispatch(RouterConfig(), self._post, self.clock.now, made)
        self.load = Load(Clients(self.dispatch, "r", self.clock), self.clock)
        self._lines: dict[str, Line] = {}
        self._leases: dict[str, MemoryHandoff] = {}

    async def add(self, worker_id: str, role: Role, stack: AsyncExitStack) -> None:
        spec = WorkerSpec(worker_id, role, epoch=1, look_every_s=1e9, watch_every_s=1e9, stall_after_s=1e9)
        config = CONFIGS[role]
        engine = SimulatedEngine(config.model, config.engine, self.clock, SealedHandoff(self._leases))
        worker = Worker(spec, engine, self.clock)
        await worker.start()
        stack.push_async_callback(worker.close)
        self._lines[worker_id] = Line(worker, self.dispatch)
        stack.push_async_callback(self._lines[worker_id].close)

    async def through(self, load: Coroutine[None, None, None]) -> None:
        """Until all that it sends has ended."""
        task = asyncio.create_task(load)
        while not task.done():
            await self.clock.advance(1.0)
        await task

    async def keep_time(self) -> None:
        while True:
            await self.clock.sleep(DEADLINE_CHECK_S)
            self.dispatch.on_time()

    def _post(self, worker_id: str, message: pb.SessionRequest) -> bool:
        self._lines[worker_id].send(message)
        return True


@asynccontextmanager
async def cluster_for(weights: dict[str, float]) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        cluster = Cluster(weights)
        for role, workers in POOLS.items():
            for number in range(workers):
                await cluster.add(f"{role.value}{number}", role, stack)
        await cluster.clock.advance(0.1)
        assert len(list(cluster.dispatch.view)) == sum(POOLS.values())
        ticking = asyncio.create_task(cluster.keep_time())
        stack.callback(ticking.cancel)
        yield cluster
        cluster.dispatch.check_integrity()
        assert cluster.dispatch.in_flight == 0


@pytest.fixture(scope="module")
def tokens_per_s() -> float:
    """What the cluster can serve."""
    return asyncio.run(capacity())


async def capacity() -> float:
    async with cluster_for({}) as cluster:
        await cluster.through(cluster.load.circle(CAPACITY_S))
    return cluster.load.served("any", CAPACITY_S / 4, CAPACITY_S) / (CAPACITY_S * 3 / 4)


async def victims_ttfts(tokens_per_s: float, flooded: bool) -> list[float]:
    async with cluster_for({}) as cluster:
        await cluster.through(cluster.load.run(victim(tokens_per_s, flooded), ROUND_S, seed=1))
    assert cluster.load.refused("victim") == 0
    assert (cluster.load.refused("flood") > 500) == flooded
    return cluster.load.ttfts("victim")


async def test_tokens_served_at_three_times_the_capacity_are_within_5_percent_of_the_weights(
    tokens_per_s: float,
) -> None:
    async with cluster_for(WEIGHTS) as cluster:
        await cluster.through(cluster.load.run(overload(tokens_per_s), OVERLOAD_S, seed=1))
    assert share_error(shares_of(cluster.load, OVERLOAD_S)) < 0.05


async def test_a_flood_does_not_raise_by_half_the_p99_ttft_that_another_tenant_has_alone(
    tokens_per_s: float,
) -> None:
    alone = quantile(await victims_ttfts(tokens_per_s, flooded=False), 0.99)
    beside = quantile(await victims_ttfts(tokens_per_s, flooded=True), 0.99)
    assert beside <= 1.5 * alone
