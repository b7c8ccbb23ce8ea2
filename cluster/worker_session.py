"""One router's session on a worker: reads what the router wants, writes what the engine gave, ends when either end
goes.

Knows the messages of the stream and their order; what a submission means is the worker's business (`SessionHost`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import grpc

from cluster.call_abort import abort_call
from protos.baton.v1 import worker_pb2 as pb

logger = logging.getLogger(__name__)

OUTGOING_LIMIT = 512
"""Steps that a router may be behind. One that does not read is ended, with all its attempts."""
_HELLO_S = 5.0
_WRITE_S = 30.0

_Context = grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionReply]


class SessionHost(Protocol):
    """What a session asks of its worker."""

    @property
    def epoch(self) -> int: ...

    async def describe(self) -> pb.WorkerDescription: ...

    async def submit(self, session: Session, submit: pb.Submit) -> None: ...

    async def abort(self, session: Session, attempt_ids: Sequence[str]) -> None: ...

    async def release(self, lease_id: str) -> None: ...

    def order_drain(self, drain: pb.Drain) -> None: ...

    def opened(self, session: Session) -> None: ...

    async def closed(self, session: Session) -> None: ...


class Session:
    def __init__(self, host: SessionHost, limit: int = OUTGOING_LIMIT) -> None:
        self.router_id = ""
        self._host = host
        self._limit = limit
        self._outgoing: deque[pb.StepOutputs] = deque()
        self._ending: asyncio.Task[None] | None = None  # its host keeps the session, and so this, until it has run
        self._more = asyncio.Event()
        self._written = asyncio.Event()  # all that was put
        self._written.set()
        self._ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Session of {self.router_id or 'an unknown router'}, {len(self._outgoing)} messages waiting>"

    def put(self, message: pb.StepOutputs) -> None:
        """Queues one engine step's outputs; ends the session instead when the router is too far behind."""
        if len(self._outgoing) >= self._limit:
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the router is {self._limit} engine steps behind")
            return
        self._outgoing.append(message)
        if not self._ended.done():
            self._written.clear()
        self._more.set()

    async def flush(self, within_s: float) -> None:
        """Waits until everything has been handed to the wire, the session has ended, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._written.wait()

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        """Makes `run` stop with this status. The first one stays."""
        if not self._ended.done():
            self._ended.set_result((code, reason))
            self._written.set()  # nothing more will be

    async def run(self, requests: AsyncIterator[pb.SessionRequest], context: _Context) -> None:
        """Until the router or the worker ends it; the host hears of the end, however it comes."""
        await self._greet(requests, context)
        self._host.opened(self)
        reader = asyncio.create_task(self._read(requests), name=f"session reader of {self.router_id}")
        writer = asyncio.create_task(self._write(context), name=f"session writer of {self.router_id}")
        try:
            code, reason = await self._ended
        finally:
            # gRPC may cancel a call more than once: what must happen at the end is not left to this task.
            self._ending = asyncio.create_task(self._wind_up(reader, writer), name=f"session end of {self.router_id}")
            await asyncio.shield(self._ending)
        if code is not grpc.StatusCode.OK:
            await abort_call(context, code, reason)

    async def _wind_up(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._host.closed(self)

    async def _greet(self, requests: AsyncIterator[pb.SessionRequest], context: _Context) -> None:
        try:
            async with asyncio.timeout(_HELLO_S):
                first = await anext(requests, None)
        except TimeoutError:
            await abort_call(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"no hello within {_HELLO_S:g} s")
        if first is None or not first.HasField("hello"):
            await abort_call(
                context, grpc.StatusCode.INVALID_ARGUMENT, "the first message of a session must be a hello"
            )
        self.router_id = first.hello.router_id
        if first.hello.epoch != self._host.epoch:
            reason = f"epoch {first.hello.epoch} is over; this engine's is {self._host.epoch}"
            await abort_call(context, grpc.StatusCode.FAILED_PRECONDITION, reason)
        welcome = pb.SessionReply(welcome=pb.Welcome(worker=await self._host.describe()))
        async with asyncio.timeout(_WRITE_S):
            await context.write(welcome)

    async def _read(self, requests: AsyncIterator[pb.SessionRequest]) -> None:
        try:
            async for message in requests:
                match message.WhichOneof("kind"):
                    case "submit":
                        await self._host.submit(self, message.submit)
                    case "abort":
                        await self._host.abort(self, message.abort.attempt_ids)
                    case "release":
                        await self._host.release(message.release.lease_id)
                    case "drain":
                        self._host.order_drain(message.drain)
                    case other:
                        self.end(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected message in a session: {other}")
            self.end(grpc.StatusCode.OK, "")
        except Exception as error:
            logger.exception("session of %s ends", self.router_id)
            self.end(grpc.StatusCode.INTERNAL, f"the worker could not process a message: {error!r}")

    async def _write(self, context: _Context) -> None:
        try:
            while True:
                while self._outgoing:
                    async with asyncio.timeout(_WRITE_S):
                        await context.write(pb.SessionReply(outputs=self._outgoing.popleft()))
                self._written.set()
                self._more.clear()
                await self._more.wait()
        except TimeoutError:
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the router has not read for {_WRITE_S:g} s")
        except Exception as error:
            self.end(grpc.StatusCode.UNAVAILABLE, f"the stream broke: {error!r}")
