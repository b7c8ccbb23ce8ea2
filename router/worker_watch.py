"""The router's end of Watch: one stream for each linked worker, a snapshot and then its changes, handed to a sink.

A broken stream or a missing number begins anew with a snapshot. Whether a worker is gone is not decided here: its
Session says that. It must not know placement.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from cluster.clock import Clock
from protos.baton.v1 import worker_pb2 as pb

logger = logging.getLogger(__name__)

RETRY_S = 0.1
RETRY_LIMIT_S = 1.0  # a worker that is not watched says nothing: its silence must not come from here
_FEW_HASHES = 64

WatchCall = grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchReply]


class BlockSink(Protocol):
    """Which worker holds which blocks, as chain hashes. Told on the event loop, at most some thousand hashes at once;
    nothing that a worker may say raises."""

    def blocks_cleared(self, worker_id: str) -> None:
        """The worker holds nothing, as far as is known."""
        ...

    def blocks_stored(self, worker_id: str, hashes: Sequence[int]) -> None: ...

    def blocks_removed(self, worker_id: str, hashes: Sequence[int]) -> None: ...

    def worker_gone(self, worker_id: str) -> None:
        """Nothing more comes from it. Unknown ids are no error."""
        ...


class LoadSink(Protocol):
    """How busy workers are, and what state they are in."""

    def load_changed(self, worker_id: str, load: pb.Load) -> None: ...

    def state_changed(self, worker_id: str, state: pb.WorkerState.ValueType, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sinks:
    blocks: BlockSink
    load: LoadSink


class Turns:
    """Takes big messages of many workers one at a time, and lets everything else on the loop run in between: while the
    snapshots of a whole cluster come in, requests are served."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._lock.release()


class MessageMissing(Exception):
    """A number was left out: what the worker holds is no longer known."""


class WorkerWatch:
    """`deadline_s` bounds the wait for every message, also after the snapshot: the worker is asked for beats well
    within it, for its Session does not prove that it still tells what it holds. `heard` is called whenever the worker
    has spoken."""

    def __init__(
        self,
        worker_id: str,
        sinks: Sinks,
        turns: Turns,
        clock: Clock,
        deadline_s: float,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._worker_id = worker_id
        self._sinks = sinks
        self._turns = turns
        self._clock = clock
        self._deadline_s = deadline_s
        self._heard = heard
        self._number = 0
        self._complete = False
        self._started = False

    @property
    def complete(self) -> bool:
        """Whether the sinks know all that the worker holds, and not a part of it."""
        return self._complete

    async def run(self, open_stream: Callable[[], WatchCall], jitter: random.Random) -> None:
        """Until cancelled; what the sinks were told last stands until then. Routers do not come back in step:
        `jitter`."""
        wait_s = RETRY_S
        while True:
            async with self._turns:  # a whole cluster's streams are not opened at once either
                call = open_stream()
            reason = await self._follow(call)
            wait_s = RETRY_S if self._complete else min(2 * wait_s, RETRY_LIMIT_S)
            self._complete = False
            logger.warning("watch of %s begins anew: %s", self._worker_id, reason)
            await self._clock.sleep(wait_s * (0.5 + jitter.random()))

    async def _follow(self, call: WatchCall) -> str:
        """One stream to its end; why it ended."""
        self._started = self._complete = False
        try:
            replies: AsyncIterator[pb.WatchReply] = aiter(call)
            while True:
                async with asyncio.timeout(self._deadline_s):
                    reply = await anext(replies, None)
                if reply is None:
                    return "the worker ended it"
                self._heard()
                if not reply.beat:
                    await self._take(reply)
                elif not self._started:
                    raise MessageMissing("a beat came where the snapshot was due")
        except TimeoutError:
            return f"nothing came for {self._deadline_s:g} s"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except MessageMissing as error:
            return str(error)
        except Exception as error:
            logger.exception("a message of %s was not taken in", self._worker_id)
            return repr(error)
        finally:
            call.cancel()

    async def _take(self, reply: pb.WatchReply) -> None:
        expected = self._number + 1 if self._complete else self._number
        if not reply.cleared and (not self._started or reply.number != expected):
            raise MessageMissing(f"message {reply.number} came where {expected} was due")
        if len(reply.stored) + len(reply.removed) <= _FEW_HASHES:
            self._tell(reply)
        else:
            async with self._turns:
                self._tell(reply)
        self._number, self._complete, self._started = reply.number, reply.complete, True

    def _tell(self, reply: pb.WatchReply) -> None:
        worker_id = self._worker_id
        if reply.cleared:
            self._sinks.blocks.blocks_cleared(worker_id)
        if reply.removed:
            self._sinks.blocks.blocks_removed(worker_id, reply.removed)
        if reply.stored:
            self._sinks.blocks.blocks_stored(worker_id, reply.stored)
        if reply.HasField("load"):
            self._sinks.load.load_changed(worker_id, reply.load)
        if reply.state:
            self._sinks.load.state_changed(worker_id, reply.state, reply.reason)
