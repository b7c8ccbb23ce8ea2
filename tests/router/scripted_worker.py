"""A worker without an engine: real gRPC, tokens as a function of the token history, leases in a book for both pools.

Tests hold it, break it or make it refuse; what it was asked to do it keeps for them to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from cluster.clock import RealClock
from cluster.engine import Role
from cluster.membership import WorkerRecord
from cluster.rpc_options import SERVER_OPTIONS
from cluster.wire import role_to_wire
from cluster.worker_watch import WatchFeed, serve_watch
from protos.baton.v1 import kv_pb2, worker_pb2, worker_pb2_grpc

VOCABULARY = range(300, 900)


def next_token(history: Sequence[int]) -> int:
    return VOCABULARY[(sum(history) * 31 + len(history)) % len(VOCABULARY)]


def expected_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """What one engine would generate."""
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(history))
    return history[len(prompt) :]


@dataclass
class LeaseBook:
    live: set[str] = field(default_factory=set)
    offered: int = 0
    read: int = 0

    def offer(self) -> str:
        self.offered += 1
        lease_id = f"lease-{self.offered}"
        self.live.add(lease_id)
        return lease_id


Queue = asyncio.Queue[worker_pb2.SessionReply]
Token = Callable[[Sequence[int]], int]


class ScriptedWorker(worker_pb2_grpc.WorkerServicer):
    """`free_tokens`: tokens of each attempt before it waits for `gate`. `refuse`: text of the error that every new
    attempt gets. `deaf`: no abort stops it. `offers_tickets`: whether a prefill leg pins blocks."""

    def __init__(self, worker_id: str, role: Role, leases: LeaseBook, token: Token = next_token) -> None:
        self.worker_id = worker_id
        self.role = role
        self.epoch = 1
        self.leases = leases
        self.state = worker_pb2.WORKER_STATE_READY
        self.token = token
        self.gate = asyncio.Event()
        self.gate.set()
        self.free_tokens = 0
        self.refuse = ""
        self.offers_tickets = True
        self.silent = False
        self.deaf = False
        self.cached_tokens = 0
        self.submits: list[worker_pb2.Submit] = []
        self.aborted: list[str] = []
        self.released: list[str] = []
        self.drains: list[worker_pb2.Drain] = []
        self.running: dict[str, asyncio.Task[None]] = {}
        self.load = worker_pb2.Load()
        self.feed = WatchFeed(lambda: worker_pb2.Load.FromString(self.load.SerializeToString()), RealClock())
        self.changed = asyncio.Condition()
        self.server: grpc.aio.Server | None = None
        self.record: WorkerRecord | None = None

    async def start(self, port: int = 0) -> WorkerRecord:
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self.server)
        bound = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        self.record = WorkerRecord(self.worker_id, self.role, self.epoch, f"127.0.0.1:{bound}")
        return self.record

    async def stop(self) -> None:
        """As if the process had been killed: streams break at once."""
        server, self.server = self.server, None
        if server is not None:
            await server.stop(0)
        for task in list(self.running.values()):
            task.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    # The service

    async def Describe(self, request: worker_pb2.DescribeRequest, context: object) -> worker_pb2.WorkerDescription:
        return self.describe()

    async def ForgetPrefixes(
        self, request: worker_pb2.ForgetPrefixesRequest, context: object
    ) -> worker_pb2.ForgetPrefixesResponse:
        """As an engine does: not while it has work."""
        return worker_pb2.ForgetPrefixesResponse(forgotten=not self.running)

    async def Session(
        self, requests: AsyncIterator[worker_pb2.SessionRequest], context: object
    ) -> AsyncIterator[worker_pb2.SessionReply]:
        outgoing: Queue = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, outgoing))
        try:
            while True:
                yield await outgoing.get()
        finally:
            reader.cancel()

    async def Watch(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes
        self,
        request: worker_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[worker_pb2.WatchRequest, worker_pb2.WatchReply],
    ) -> None:
        self.feed.enter(self.state, "")
        await serve_watch(self.feed, self.epoch, request, context)

    def describe(self) -> worker_pb2.WorkerDescription:
        return worker_pb2.WorkerDescription(
            worker_id=self.worker_id, role=role_to_wire(self.role), epoch=self.epoch, state=self.state, model="demo"
        )

    async def _read(self, requests: AsyncIterator[worker_pb2.SessionRequest], outgoing: Queue) -> None:
        async for request in requests:
            match request.WhichOneof("kind"):
                case "hello" if not self.silent:
                    outgoing.put_nowait(worker_pb2.SessionReply(welcome=worker_pb2.Welcome(worker=self.describe())))
                case "submit":
                    self._submit(request.submit, outgoing)
                case "abort" if not self.deaf:
                    for attempt_id in request.abort.attempt_ids:
                        self.aborted.append(attempt_id)
                        if task := self.running.get(attempt_id):
                            task.cancel()
                case "release":
                    self.released.append(request.release.lease_id)
                    self.leases.live.discard(request.release.lease_id)
                case "drain":
                    self.drains.append(request.drain)
            await self._tell()

    def _submit(self, submit: worker_pb2.Submit, outgoing: Queue) -> None:
        self.submits.append(submit)
        self.running[submit.attempt_id] = asyncio.create_task(self._run(submit, outgoing))

    async def _run(self, submit: worker_pb2.Submit, outgoing: Queue) -> None:
        try:
            await self._generate(submit, outgoing)
        finally:
            del self.running[submit.attempt_id]
            await self._tell()

    async def _generate(self, submit: worker_pb2.Submit, outgoing: Queue) -> None:
        if self.refuse:
            failed = worker_pb2.Output(
                attempt_id=submit.attempt_id, finish_reason=worker_pb2.FINISH_REASON_ERROR, error=self.refuse
            )
            return _put(outgoing, failed)
        if submit.ticket:
            self.leases.read += 1
            self.leases.live.discard(kv_pb2.Ticket.FromString(submit.ticket).lease_id)
        history = list(submit.prompt_token_ids)
        for produced in range(1, submit.sampling.max_tokens + 1):
            if produced > self.free_tokens:
                await self.gate.wait()
            token = self.token(history)
            history.append(token)
            last = produced == submit.sampling.max_tokens or token in submit.sampling.stop_token_ids
            _put(outgoing, self._output(submit, token, produced, last))
            if last:
                return
            await asyncio.sleep(0)

    def _output(self, submit: worker_pb2.Submit, token: int, produced: int, last: bool) -> worker_pb2.Output:
        output = worker_pb2.Output(attempt_id=submit.attempt_id, token_ids=[token])
        if produced == 1:
            prompt = len(submit.prompt_token_ids)
            output.origin.CopyFrom(worker_pb2.PromptOrigin(prompt_tokens=prompt, cached_tokens=self.cached_tokens))
        if submit.sampling.HasField("logprobs"):
            ids = [token, *range(submit.sampling.logprobs)]
            output.logprobs.add(token_ids=ids, logprobs=[-0.5 - i for i in range(len(ids))], rank=1)
        if last:
            stopped = token in submit.sampling.stop_token_ids
            output.finish_reason = worker_pb2.FINISH_REASON_STOP if stopped else worker_pb2.FINISH_REASON_LENGTH
            if stopped:
                output.stop_token_id = token
            if submit.leg == worker_pb2.LEG_PREFILL and self.offers_tickets:
                ticket = kv_pb2.Ticket(attempt_id=submit.attempt_id, lease_id=self.leases.offer())
                output.ticket = ticket.SerializeToString()
        return output

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def _put(outgoing: Queue, output: worker_pb2.Output) -> None:
    load = worker_pb2.Load(running=1)
    outgoing.put_nowait(worker_pb2.SessionReply(outputs=worker_pb2.StepOutputs(outputs=[output], load=load)))
