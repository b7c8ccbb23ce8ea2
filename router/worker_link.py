"""One router's line to one worker: a channel and the Session stream on it.

`open`, then `serve` until the stream ends; both raise `WorkerLost` with the reason. It must not know requests, nor
decide what a lost worker means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc

from cluster.errors import WorkerLost
from cluster.membership import WorkerRecord
from cluster.rpc_options import patient_options
from cluster.tls import PLAIN, Channels
from protos.baton.v1 import worker_pb2, worker_pb2_grpc

OUTGOING_LIMIT = 8_192
"""Messages waiting for the wire. A worker that lets this fill up does not read: it counts as lost."""
_BEATS = 3  # in the time after which silence counts: one that is late is no reason to begin anew
_CLOSED = "the session with it has ended"

T = TypeVar("T")
OnStep = Callable[[worker_pb2.StepOutputs], None]


class _Outgoing:
    """Messages waiting for the wire; iterating ends when it is closed."""

    def __init__(self) -> None:
        self._messages: deque[worker_pb2.SessionRequest] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def full(self) -> bool:
        return len(self._messages) >= OUTGOING_LIMIT

    def put(self, message: worker_pb2.SessionRequest) -> None:
        self._messages.append(message)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[worker_pb2.SessionRequest]:
        while not self._closed:
            while self._messages and not self._closed:
                yield self._messages.popleft()
            self._changed.clear()
            if not self._closed:
                await self._changed.wait()


class WorkerLink:
    """`deadline_s` bounds the connect and every unary call. `silent_after_s`: how long the worker may say nothing
    before whoever reads gives it up. It is asked to say on its Watch stream, well within that time, that it is there;
    with 0 it speaks only when there is news."""

    def __init__(
        self,
        record: WorkerRecord,
        router_id: str,
        deadline_s: float,
        silent_after_s: float = 0.0,
        channels: Channels = PLAIN,
    ) -> None:
        self.record = record
        self._router_id = router_id
        self._deadline_s = deadline_s
        self._beat_s = silent_after_s / _BEATS
        self._channel = channels.dial(record.address, patient_options(silent_after_s))
        self._stub = worker_pb2_grpc.WorkerStub(self._channel)
        self._outgoing = _Outgoing()
        self._call: grpc.aio.StreamStreamCall[worker_pb2.SessionRequest, worker_pb2.SessionReply] | None = None
        self._replies: AsyncIterator[worker_pb2.SessionReply] | None = None
        self._given_up: WorkerLost | None = None
        self._closed = False

    async def open(self) -> worker_pb2.WorkerDescription:
        """Starts the session. Raises `WorkerLost`: not reachable in time, another epoch, or of no use now. One that
        drains may be told to take work again."""
        hello = worker_pb2.Hello(router_id=self._router_id, epoch=self.record.epoch)
        self._outgoing.put(worker_pb2.SessionRequest(hello=hello))
        self._call = self._stub.Session(aiter(self._outgoing))
        self._replies = aiter(self._call)
        try:
            async with asyncio.timeout(self._deadline_s):
                reply = await anext(self._replies, None)
        except TimeoutError:
            raise self._lost(f"no answer within {self._deadline_s:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise self._lost(_reason(error)) from error
        return self._checked(reply)

    def send(self, message: worker_pb2.SessionRequest) -> bool:
        """Queues the message; False when the worker counts as lost."""
        if self._call is None or self._call.done() or self._given_up is not None:
            return False
        if self._outgoing.full:
            self.give_up(self._lost("it does not read its messages"))
            return False
        self._outgoing.put(message)
        return True

    def give_up(self, cause: WorkerLost) -> None:
        """Ends the session: `serve` raises `cause`. The first one stays."""
        if self._given_up is None:
            self._given_up = cause
            if self._call is not None:
                self._call.cancel()

    async def serve(self, on_step: OnStep) -> None:
        """Hands every message to `on_step` until the stream ends, which raises `WorkerLost`."""
        assert self._replies is not None, "open() comes first"
        try:
            async for reply in self._replies:
                if reply.HasField("outputs"):
                    on_step(reply.outputs)
        except grpc.aio.AioRpcError as error:
            raise self._lost(_reason(error)) from error
        except asyncio.CancelledError:
            if self._given_up is None or _cancelled():
                raise
            raise self._given_up from None
        raise self._lost("it ended the session")

    def watch(self) -> grpc.aio.UnaryStreamCall[worker_pb2.WatchRequest, worker_pb2.WatchReply]:
        """A Watch stream over the same connection, to be read and cancelled by the caller."""
        request = worker_pb2.WatchRequest(router_id=self._router_id, epoch=self.record.epoch, beat_s=self._beat_s)
        return self._stub.Watch(request)

    async def describe(self, within_s: float | None = None) -> worker_pb2.WorkerDescription:
        """Raises `WorkerLost` when the worker does not answer within that time, or the deadline if it is sooner."""
        limit_s = self._deadline_s if within_s is None else min(within_s, self._deadline_s)
        return await self._answer(lambda: self._stub.Describe(worker_pb2.DescribeRequest(), timeout=limit_s))

    async def forget_prefixes(self) -> bool:
        """False: blocks of its cache are in use, so it keeps them all. Raises `WorkerLost`."""
        asked = worker_pb2.ForgetPrefixesRequest()
        return (await self._answer(lambda: self._stub.ForgetPrefixes(asked, timeout=self._deadline_s))).forgotten

    async def close(self) -> None:
        """May be called twice, and without `open`. Calls that wait for an answer raise `WorkerLost`."""
        self._closed = True
        self._outgoing.close()
        if self._call is not None:
            self._call.cancel()
        await self._channel.close(None)

    async def _answer(self, call: Callable[[], Awaitable[T]]) -> T:
        """Raises `WorkerLost`, also when the link is closed meanwhile: that cancels the call, not who waits for it."""
        if self._closed:
            raise self._lost(_CLOSED)
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            raise self._lost(_reason(error)) from error
        except asyncio.CancelledError:
            if _cancelled():
                raise
            raise self._lost(_CLOSED) from None

    def _checked(self, reply: worker_pb2.SessionReply | None) -> worker_pb2.WorkerDescription:
        if reply is None or not reply.HasField("welcome"):
            raise self._lost("it closed the session before it said welcome")
        worker = reply.welcome.worker
        if (worker.worker_id, worker.epoch) != (self.record.worker_id, self.record.epoch):
            raise self._lost(f"another worker answers there: {worker.worker_id}, epoch {worker.epoch}")
        if worker.state not in (worker_pb2.WORKER_STATE_READY, worker_pb2.WORKER_STATE_DRAINING):
            raise self._lost(f"it is not ready: {worker_pb2.WorkerState.Name(worker.state)} {worker.reason}".rstrip())
        return worker

    def _lost(self, reason: str) -> WorkerLost:
        return WorkerLost(f"worker {self.record.worker_id} at {self.record.address}: {reason}")


def _cancelled() -> bool:
    """Whether it is the running task that is cancelled, and not just a call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
