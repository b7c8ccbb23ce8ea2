"""The worker's end of Watch: what it holds, its load and its state, told to every router that watches.

Owns the set of held blocks and the numbers of the changes. It must not know engines; where the facts come from is the
worker's business.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

import grpc

from cluster.block_changes import BlockChanges, BlockDelta
from cluster.call_abort import abort_call
from cluster.clock import Clock
from protos.baton.v1 import worker_pb2 as pb

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 0.1
"""At most one message in so many seconds: a busy engine changes with every step, and a message costs a router, which
watches many, about 0.2 ms. After a quiet time the first change is told at once."""
PART = 2_048
"""Hashes in one message, at most: what a router takes in without keeping others waiting."""
MESSAGES_BEHIND = 256
LEAST_BEAT_S = 0.05
"""However often a router wants to hear from an idle worker."""
_GATHER_S = 0.005  # a step's outputs and its blocks come from the engine by different ways, a moment apart
_WRITE_S = 30.0

_Context = grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchReply]


class WatchFeed:
    """`load` is asked for whenever something is told. What happens within `every_s` is told as one change."""

    def __init__(self, load: Callable[[], pb.Load], clock: Clock, every_s: float = WATCH_EVERY_S) -> None:
        self._load = load
        self._clock = clock
        self._every_s = every_s
        self._held: dict[int, None] = {}  # in the order of storing: a prefix comes before what continues it
        self._changes = BlockChanges()
        self._number = 0
        self._told_load = pb.Load()
        self._state: tuple[pb.WorkerState.ValueType, str] = (pb.WORKER_STATE_STARTING, "")
        self._told_state = self._state
        self._stirred = asyncio.Event()
        self._watchers: set[Watcher] = set()

    @property
    def held(self) -> frozenset[int]:
        """Chain hashes of all blocks held now. A copy: for inspection."""
        return frozenset(self._held)

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def apply(self, delta: BlockDelta) -> None:
        """What an engine says twice, or unsays without having said it, changes nothing."""
        if delta.cleared:
            self._held.clear()
            self._changes.clear()
        for content in delta.removed:
            if content in self._held:
                del self._held[content]
                self._changes.remove(content)
        for content in delta.stored:
            if content not in self._held:
                self._held[content] = None
                self._changes.store(content)
        self._stirred.set()

    def stir(self) -> None:
        """The load may have changed."""
        self._stirred.set()

    def enter(self, state: pb.WorkerState.ValueType, reason: str) -> None:
        """Told at once: a router must not place work here on an old state."""
        self._state = (state, reason)
        self.flush()

    async def run(self) -> None:
        """Tells what has changed, for ever; sleeps while nothing does."""
        while True:
            await self._stirred.wait()
            await self._clock.sleep(_GATHER_S)
            self._stirred.clear()
            if self.flush():
                await self._clock.sleep(self._every_s)

    def flush(self) -> bool:
        """Tells what has changed; whether anything has."""
        load, state = self._load(), self._state
        if not self._changes and load == self._told_load and state == self._told_state:
            return False
        for message in _messages(self._changes.take()):
            self._number += 1
            message.number = self._number
            if load != self._told_load:
                message.load.CopyFrom(load)
            if state != self._told_state:
                message.state, message.reason = state
            self._told_load, self._told_state = load, state
            for watcher in self._watchers:
                watcher.put(message)
        return True

    def watch(self, beat_s: float = 0.0) -> Watcher:
        """A new reader, to be closed by the caller. It begins with a snapshot."""
        watcher = Watcher(self, beat_s)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def close(self) -> None:
        """Ends every watcher."""
        for watcher in list(self._watchers):
            watcher.close()

    @property
    def most_behind(self) -> int:
        """Hashes that may wait for one router: the whole cache turned over once, and some more. Where more wait, a
        snapshot is shorter."""
        return 2 * (len(self._held) + PART)

    def snapshot(self) -> Iterator[pb.WatchReply]:
        """Everything as of now, however much later the parts are taken."""
        self.flush()
        return _parts(array("Q", self._held), self._number, self._told_load, self._told_state)


class Watcher:
    """One router's place in the feed: a snapshot, then what changed since. One that falls behind begins anew. After
    `beat_s` without news comes a beat: this event loop turns; with 0 none does."""

    def __init__(self, feed: WatchFeed, beat_s: float = 0.0) -> None:
        self._feed = feed
        self._beat_s = beat_s
        self._snapshot: Iterator[pb.WatchReply] = iter(())
        self._waiting: deque[pb.WatchReply] = deque()
        self._hashes_waiting = 0
        self._behind = True
        self._more = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Watcher, {len(self._waiting)} messages waiting>"

    def put(self, message: pb.WatchReply) -> None:
        if self._behind:
            return  # the snapshot will hold it
        self._waiting.append(message)
        self._hashes_waiting += _hashes_in(message)
        self._behind = len(self._waiting) > MESSAGES_BEHIND or self._hashes_waiting > self._feed.most_behind
        if self._behind:
            self._waiting.clear()
            self._hashes_waiting = 0
        self._more.set()

    def close(self) -> None:
        """Ends the iteration. May be called twice."""
        self._closed = True
        self._feed.leave(self)
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[pb.WatchReply]:
        while not self._closed:
            self._more.clear()
            if (message := self._next()) is not None:
                yield message
            elif not await self._news():
                yield pb.WatchReply(beat=True, complete=True)

    async def _news(self) -> bool:
        """Waits for some; False: it is time to say that there is none."""
        try:
            async with asyncio.timeout(self._beat_s or None):
                return await self._more.wait()
        except TimeoutError:
            return False

    def _next(self) -> pb.WatchReply | None:
        if self._behind:
            self._snapshot, self._behind = self._feed.snapshot(), False
        if (part := next(self._snapshot, None)) is not None:
            return part
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self._hashes_waiting -= _hashes_in(message)
        return message


async def serve_watch(feed: WatchFeed, epoch: int, request: pb.WatchRequest, context: _Context) -> None:
    """One Watch call, until the router goes, does not read, or the feed is closed."""
    if request.epoch != epoch:
        reason = f"epoch {request.epoch} is over; this engine's is {epoch}"
        await abort_call(context, grpc.StatusCode.FAILED_PRECONDITION, reason)
    watcher = feed.watch(max(request.beat_s, LEAST_BEAT_S) if request.beat_s else 0.0)
    try:
        async for message in watcher:
            async with asyncio.timeout(_WRITE_S):
                await context.write(message)
    except TimeoutError:
        reason = f"router {request.router_id} has not read for {_WRITE_S:g} s"
        logger.warning("watch ends: %s", reason)
        await abort_call(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    finally:
        watcher.close()
    await abort_call(context, grpc.StatusCode.UNAVAILABLE, "the worker is closing")


def _messages(delta: BlockDelta) -> Iterator[pb.WatchReply]:
    """At least one. The hashes of a delta are apart, so any cut will do, if only clearing comes first."""
    removed, stored = delta.removed, delta.stored
    first = pb.WatchReply(cleared=delta.cleared, removed=removed[:PART], complete=True)
    first.stored.extend(stored[: PART - len(first.removed)])
    yield first
    removed, stored = removed[len(first.removed) :], stored[len(first.stored) :]
    for start in range(0, len(removed), PART):
        yield pb.WatchReply(removed=removed[start : start + PART], complete=True)
    for start in range(0, len(stored), PART):
        yield pb.WatchReply(stored=stored[start : start + PART], complete=True)


def _parts(
    hashes: array[int], number: int, load: pb.Load, state: tuple[pb.WorkerState.ValueType, str]
) -> Iterator[pb.WatchReply]:
    for start in range(0, max(1, len(hashes)), PART):
        end = start + PART
        part = pb.WatchReply(number=number, stored=hashes[start:end], complete=end >= len(hashes))
        if start == 0:
            part.cleared, part.state, part.reason = True, *state
            part.load.CopyFrom(load)
        yield part


def _hashes_in(message: pb.WatchReply) -> int:
    return len(message.stored) + len(message.removed)
