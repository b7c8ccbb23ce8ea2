"""The router's end of Watch against the worker's: after anything that can happen, both hold the same blocks."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.block_changes import BlockDelta
from cluster.clock import RealClock, VirtualClock
from cluster.engine import Role
from cluster.worker_watch import PART, Watcher, WatchFeed
from protos.baton.v1 import worker_pb2 as pb
from router.worker_link import WorkerLink
from router.worker_watch import RETRY_LIMIT_S, Sinks, Turns, WatchCall, WorkerWatch
from tests.router.scripted_worker import LeaseBook, ScriptedWorker
from tests.waiting import eventually

DEADLINE_S = 0.4


class Known:
    """Both sinks: what the router knows."""

    def __init__(self) -> None:
        self.blocks: dict[str, set[int]] = {}
        self.snapshots = 0
        self.most_at_once = 0
        self.load = pb.Load()
        self.state = 0

    def of(self, worker_id: str) -> set[int]:
        return self.blocks.setdefault(worker_id, set())

    def blocks_cleared(self, worker_id: str) -> None:
        self.snapshots += 1
        self.blocks[worker_id] = set()

    def blocks_stored(self, worker_id: str, hashes: Sequence[int]) -> None:
        self.most_at_once = max(self.most_at_once, len(hashes))
        self.of(worker_id).update(hashes)

    def blocks_removed(self, worker_id: str, hashes: Sequence[int]) -> None:
        self.of(worker_id).difference_update(hashes)

    def worker_gone(self, worker_id: str) -> None:
        self.blocks.pop(worker_id, None)

    def load_changed(self, worker_id: str, load: pb.Load) -> None:
        self.load = load

    def state_changed(self, worker_id: str, state: pb.WorkerState.ValueType, reason: str) -> None:
        self.state = state


Context = grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchReply]


class Spoiler(ScriptedWorker):
    """`mute` watches get no answer; `passes` decides which messages go out."""

    def __init__(self) -> None:
        super().__init__("w", Role.DECODE, LeaseBook())
        self.mute = 0
        self.watches = 0
        self.passes: Callable[[pb.WatchReply], bool] = lambda message: True

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        self.watches += 1
        if self.watches <= self.mute:
            await asyncio.Event().wait()
        watcher = self.feed.watch(request.beat_s)
        try:
            async for message in watcher:
                if self.passes(message):
                    await context.write(message)
        finally:
            watcher.close()

    def store(self, *hashes: int) -> None:
        self.feed.apply(BlockDelta(stored=hashes))
        self.feed.flush()


@asynccontextmanager
async def watched(worker: ScriptedWorker) -> AsyncIterator[tuple[Known, WorkerWatch]]:
    link = WorkerLink(await worker.start(), "r", deadline_s=1.0, silent_after_s=3 * DEADLINE_S / 8)
    known = Known()
    watch = WorkerWatch("w", Sinks(known, known), Turns(), RealClock(), DEADLINE_S)
    task = asyncio.create_task(watch.run(link.watch, random.Random(1)))
    try:
        yield known, watch
        assert not task.done(), "a watch goes on whatever its worker says"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await link.close()
        await worker.stop()
    await eventually(lambda: worker.feed.watchers == 0)


async def test_a_snapshot_larger_than_a_message_and_its_changes_arrive() -> None:
    worker = Spoiler()
    worker.store(*range(3 * PART + 7))
    async with watched(worker) as (known, watch):
        await eventually(lambda: watch.complete)
        assert known.of("w") == worker.feed.held
        assert known.most_at_once <= PART
        worker.feed.apply(BlockDelta(removed=tuple(range(100))))
        worker.store(10**15)
        await eventually(lambda: known.of("w") == worker.feed.held)
        assert known.snapshots == 1


async def test_after_a_lost_message_the_watch_begins_anew() -> None:
    worker = Spoiler()
    async with watched(worker) as (known, watch):
        await eventually(lambda: watch.complete)
        worker.passes = lambda message: 1 not in message.stored or message.cleared
        worker.store(1)
        worker.store(2)
        await eventually(lambda: known.of("w") == {1, 2})
        assert (known.snapshots, worker.watches) == (2, 2)


async def test_a_stream_that_does_not_begin_with_a_snapshot_is_not_believed() -> None:
    worker = Spoiler()
    async with watched(worker) as (known, _):
        await eventually(lambda: known.snapshots == 1)
        worker.passes = lambda message: not message.cleared
        await worker.stop()
        assert worker.record is not None
        await worker.start(int(worker.record.address.rpartition(":")[2]))
        worker.store(5)
        await eventually(lambda: worker.watches >= 3)
        assert known.of("w") == set()
        worker.passes = lambda message: True
        await eventually(lambda: known.of("w") == {5})


async def test_a_worker_that_does_not_answer_is_asked_again() -> None:
    worker = Spoiler()
    worker.mute = 1
    worker.store(1)
    async with watched(worker) as (known, _):
        await eventually(lambda: known.of("w") == {1})
        assert worker.watches == 2


async def test_an_idle_watch_lives_on_its_beats_beyond_the_deadline() -> None:
    worker = Spoiler()
    async with watched(worker) as (known, watch):
        await eventually(lambda: watch.complete)
        await asyncio.sleep(2 * DEADLINE_S)  # that nothing happens is what is shown
        assert (known.snapshots, worker.watches) == (1, 1)


async def test_a_watch_that_falls_silent_behind_its_snapshot_begins_anew() -> None:
    worker = Spoiler()
    async with watched(worker) as (known, watch):
        await eventually(lambda: watch.complete)
        worker.passes = lambda message: False
        worker.store(1)
        await eventually(lambda: worker.watches == 2)
        worker.passes = lambda message: True
        await eventually(lambda: known.of("w") == {1})


async def test_a_sink_that_breaks_does_not_end_the_watch() -> None:
    worker = Spoiler()
    async with watched(worker) as (known, watch):
        await eventually(lambda: watch.complete)
        stored, known.blocks_stored = known.blocks_stored, _broken  # type: ignore[method-assign]
        worker.store(1)
        await eventually(lambda: worker.watches == 2)
        known.blocks_stored = stored  # type: ignore[method-assign]
        await eventually(lambda: known.of("w") == {1})


def _broken(worker_id: str, hashes: Sequence[int]) -> None:
    raise ZeroDivisionError


# Any interleaving, without a network


class Stream:
    """A call as the router sees it, fed by a watcher; the test decides how much passes, what is lost, when it
    breaks."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.passed: deque[pb.WatchReply | None] = deque()
        self.more = asyncio.Event()
        self.cancelled = False

    def move(self, count: int, lose: bool) -> None:
        for _ in range(count):
            message = self.watcher._next()
            if message is not None and not lose:
                self.passed.append(message)
        self.more.set()

    def end(self) -> None:
        self.passed.append(None)
        self.more.set()

    def cancel(self) -> bool:
        self.cancelled = True
        self.watcher.close()
        return True

    async def __aiter__(self) -> AsyncIterator[pb.WatchReply]:
        while True:
            while self.passed:
                if (message := self.passed.popleft()) is None:
                    return
                yield message
            self.more.clear()
            await self.more.wait()


class Wires:
    def __init__(self, feed: WatchFeed) -> None:
        self.feed = feed
        self.streams: list[Stream] = []

    def open(self) -> WatchCall:
        self.streams.append(Stream(self.feed.watch()))
        return cast(WatchCall, self.streams[-1])


# Few enough that they meet again, and at times so many that a message waits for its turn.
_HASHES = st.one_of(st.sets(st.integers(0, 4), min_size=1), st.just(set(range(100, 200))))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), _HASHES),
        st.tuples(st.just("remove"), _HASHES),
        st.tuples(st.just("clear"), st.none()),
        st.tuples(st.just("flush"), st.none()),
        st.tuples(st.just("move"), st.integers(1, 4)),
        st.tuples(st.just("lose"), st.integers(1, 2)),
        st.tuples(st.just("end"), st.none()),
        st.tuples(st.just("turn"), st.none()),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(_STEPS)
def test_after_any_interleaving_the_router_holds_what_the_worker_holds(steps: list[tuple[str, object]]) -> None:
    asyncio.run(_interleave(steps))


async def _interleave(steps: list[tuple[str, object]]) -> None:
    clock, known = VirtualClock(), Known()
    feed = WatchFeed(pb.Load, clock)
    wires = Wires(feed)
    watch = WorkerWatch("w", Sinks(known, known), Turns(), clock, deadline_s=1000.0)
    task = asyncio.create_task(watch.run(wires.open, random.Random(1)))
    await clock.advance(0)
    for step, argument in steps:
        stream = wires.streams[-1]
        match step, argument:
            case "store", set(hashes):
                feed.apply(BlockDelta(stored=tuple(hashes)))
            case "remove", set(hashes):
                feed.apply(BlockDelta(removed=tuple(hashes)))
            case "clear", _:
                feed.apply(BlockDelta(cleared=True))
            case "flush", _:
                feed.flush()
            case "move" | "lose", int(count):
                stream.move(count, lose=step == "lose")
            case "end", _:
                stream.end()
                await clock.advance(RETRY_LIMIT_S)
            case _:
                await clock.advance(RETRY_LIMIT_S)
    await _settle(feed, wires, clock)
    assert known.of("w") == feed.held
    assert watch.complete
    assert feed.watchers == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert feed.watchers == 0


async def _settle(feed: WatchFeed, wires: Wires, clock: VirtualClock) -> None:
    """Everything that is under way arrives; what was lost is noticed by the next change."""
    for _ in range(3):
        feed.apply(BlockDelta(removed=(10**6,)) if 10**6 in feed.held else BlockDelta(stored=(10**6,)))
        feed.flush()
        await clock.advance(2 * RETRY_LIMIT_S)
        wires.streams[-1].move(100, lose=False)
        await clock.advance(2 * RETRY_LIMIT_S)
        wires.streams[-1].move(100, lose=False)
        await clock.advance(2 * RETRY_LIMIT_S)
