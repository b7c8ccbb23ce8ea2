"""A worker with a simulated engine over real gRPC on loopback, and the router's side of its sessions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc

from cluster.clock import RealClock
from cluster.config import EngineConfig, ModelConfig, SimulatedTiming
from cluster.engine import EngineRequest, Leg, Role, Sampling
from cluster.rpc_options import CHANNEL_OPTIONS
from cluster.simulated_engine import SimulatedEngine
from cluster.wire import request_to_wire
from cluster.worker import Worker, WorkerSpec
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1.worker_pb2_grpc import WorkerStub
from tests.cluster.handoff_in_memory import MemoryHandoff
from tests.session import SessionCall, open_stream

EPOCH = 7


class Router:
    """The router's side of one session."""

    def __init__(self, call: SessionCall) -> None:
        self.call = call

    async def submit(self, attempt_id: str, leg: Leg = Leg.WHOLE, max_tokens: int = 3, ticket: bytes = b"") -> None:
        request = EngineRequest(attempt_id, leg, [5] * 40, Sampling(max_tokens), ticket=ticket)
        await self.call.write(pb.SessionRequest(submit=request_to_wire(request)))

    async def abort(self, *attempt_ids: str) -> None:
        await self.call.write(pb.SessionRequest(abort=pb.Abort(attempt_ids=attempt_ids)))

    async def read(self) -> pb.SessionReply:
        async with asyncio.timeout(10):
            reply = await self.call.read()
        assert isinstance(reply, pb.SessionReply), "the stream has ended"
        return reply

    async def outputs_of(self, *attempt_ids: str, last: str = "") -> dict[str, list[pb.Output]]:
        """Until all have ended, or `last` has."""
        seen: dict[str, list[pb.Output]] = {attempt_id: [] for attempt_id in attempt_ids}
        awaited = [seen[last]] if last else list(seen.values())
        while not all(outputs and outputs[-1].finish_reason for outputs in awaited):
            for output in (await self.read()).outputs.outputs:
                seen[output.attempt_id].append(output)
        return seen

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends; what came before is read, for gRPC tells the status after it."""
        async with asyncio.timeout(10):
            with suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()


class CountingClock(RealClock):
    """Counts the worker's looks at its engine: it sleeps before each. `missed_s`: in which nobody here has run."""

    looks = 0
    missed_s = 0.0

    def now(self) -> float:
        return super().now() + self.missed_s

    async def sleep(self, seconds: float) -> None:
        self.looks += 1
        await super().sleep(seconds)


class Bench:
    def __init__(
        self,
        role: Role = Role.DECODE,
        stall_after_s: float = 30.0,
        limit: int = 512,
        look_every_s: float = 0.02,
        **timing: float,
    ) -> None:
        config = EngineConfig(kind="simulated", simulated=SimulatedTiming(**({"step_s": 0.001} | timing)))  # type: ignore[arg-type]
        self.line = MemoryHandoff({})
        self.engine = SimulatedEngine(ModelConfig(path="none"), config, RealClock(), self.line)
        spec = WorkerSpec(
            "w1", role, EPOCH, stall_after_s=stall_after_s, look_every_s=look_every_s, outgoing_limit=limit
        )
        self.clock = CountingClock()
        self._routers = itertools.count()
        self.worker = Worker(spec, self.engine, self.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        await self.worker.start()
        async with grpc.aio.insecure_channel(self.worker.record.address, options=CHANNEL_OPTIONS) as channel:
            self.stub = WorkerStub(channel)
            try:
                yield self
            finally:
                await self.worker.close()
        self.worker.attempts.check_integrity()
        self.engine.batch.pool.check_integrity()

    async def session(self, epoch: int = EPOCH, router_id: str = "") -> Router:
        """Of another router than any before, unless it is named."""
        router = await self.hello(epoch, router_id)
        assert (await router.read()).welcome.worker.worker_id == "w1"
        return router

    async def hello(self, epoch: int = EPOCH, router_id: str = "") -> Router:
        call = open_stream(self.stub)
        router_id = router_id or f"r{next(self._routers)}"
        await call.write(pb.SessionRequest(hello=pb.Hello(router_id=router_id, epoch=epoch)))
        return Router(call)

    @property
    def idle(self) -> bool:
        return not len(self.worker.attempts) and not self.engine.batch.pool.used
