"""The feed and its watchers: what a watcher has read, it holds as the worker does; memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.block_changes import BlockDelta
from cluster.clock import RealClock, VirtualClock
from cluster.engine import Leg, Role
from cluster.worker_watch import MESSAGES_BEHIND, PART, Watcher, WatchFeed
from protos.baton.v1 import worker_pb2 as pb
from tests.cluster.worker_bench import EPOCH, Bench
from tests.waiting import eventually


@dataclass
class Reader:
    """What a router knows from the messages of one stream; complains about a missing number."""

    held: set[int] = field(default_factory=set)
    number: int = -1
    complete: bool = True
    snapshots: int = 0
    messages: int = 0
    load: pb.Load = field(default_factory=pb.Load)
    state: int = 0

    def take(self, message: pb.WatchReply) -> None:
        if message.cleared:
            self.held.clear()
            self.snapshots += 1
        else:
            assert message.number == (self.number + 1 if self.complete else self.number)
        self.held.difference_update(message.removed)
        self.held.update(message.stored)
        self.number, self.complete = message.number, message.complete
        self.messages += 1
        if message.HasField("load"):
            self.load = message.load
        self.state = message.state or self.state

    def read(self, watcher: Watcher, most: int = 10**9) -> None:
        """What is there to read now."""
        while most and (message := watcher._next()) is not None:
            self.take(message)
            most -= 1


class Stage:
    def __init__(self) -> None:
        self.load = pb.Load()
        self.clock = VirtualClock()
        self.feed = WatchFeed(lambda: pb.Load.FromString(self.load.SerializeToString()), self.clock, every_s=0.1)

    def store(self, *hashes: int) -> None:
        self.feed.apply(BlockDelta(stored=hashes))

    def remove(self, *hashes: int) -> None:
        self.feed.apply(BlockDelta(removed=hashes))


def test_a_snapshot_comes_in_parts_and_the_changes_meanwhile_follow_it() -> None:
    stage, reader = Stage(), Reader()
    stage.store(*range(3 * PART + 1))
    watcher = stage.feed.watch()
    reader.read(watcher, most=2)
    assert len(reader.held) == 2 * PART
    assert not reader.complete
    stage.remove(5)
    stage.store(10**6)
    stage.feed.flush()
    reader.read(watcher)
    assert (reader.held, reader.messages, reader.complete) == (set(stage.feed.held), 5, True)


def test_the_snapshot_of_an_empty_worker_says_so() -> None:
    stage, reader = Stage(), Reader(held={1})
    reader.read(stage.feed.watch())
    assert (reader.held, reader.complete, reader.snapshots) == (set(), True, 1)


def test_what_was_stored_but_not_yet_told_is_in_a_snapshot_and_its_removal_is_told() -> None:
    stage, reader = Stage(), Reader()
    stage.store(1)
    watcher = stage.feed.watch()
    reader.read(watcher)
    stage.remove(1)
    stage.feed.flush()
    reader.read(watcher)
    assert reader.held == set()


@pytest.mark.parametrize("burst", [1, PART], ids=["too many messages", "too many hashes"])
def test_a_router_that_falls_behind_gets_a_snapshot_and_its_queue_stays_bounded(burst: int) -> None:
    stage, slow, quick = Stage(), Reader(), Reader()
    slow_watcher, quick_watcher = stage.feed.watch(), stage.feed.watch()
    slow.read(slow_watcher)
    for start in range(0, (MESSAGES_BEHIND + 10) * burst, burst):
        stage.remove(*range(start - burst, start))
        stage.store(*range(start, start + burst))
        stage.feed.flush()
        quick.read(quick_watcher)
        assert len(slow_watcher._waiting) <= MESSAGES_BEHIND
        assert slow_watcher._hashes_waiting <= 4 * PART
    slow.read(slow_watcher)
    assert slow.held == quick.held == set(stage.feed.held)
    assert (slow.snapshots, quick.snapshots) == (2, 1)


def test_an_engine_that_repeats_or_unsays_changes_nothing() -> None:
    stage, reader = Stage(), Reader()
    watcher = stage.feed.watch()
    stage.store(1)
    stage.feed.flush()
    reader.read(watcher)
    before = reader.messages
    stage.store(1)
    stage.remove(9)
    stage.feed.flush()
    reader.read(watcher)
    assert reader.messages == before


def test_a_large_change_is_told_in_parts_of_its_own_numbers() -> None:
    stage, reader = Stage(), Reader()
    stage.store(*range(4 * PART))
    watcher = stage.feed.watch()
    reader.read(watcher)
    stage.remove(*range(PART + 10))
    stage.store(*range(10**6, 10**6 + PART))
    stage.feed.flush()
    sizes = [len(message.removed) + len(message.stored) for message in watcher._waiting]
    assert max(sizes) <= PART
    reader.read(watcher)
    assert reader.held == set(stage.feed.held)


async def test_changes_are_gathered_and_nothing_is_told_while_nothing_changes() -> None:
    stage, reader = Stage(), Reader()
    task = asyncio.create_task(stage.feed.run())
    watcher = stage.feed.watch()
    reader.read(watcher)
    for content in range(10):
        stage.store(content)
        stage.load.running = content
    await stage.clock.advance(0.01)
    reader.read(watcher)
    assert (reader.messages, reader.load.running, reader.held) == (2, 9, set(range(10)))
    stage.store(10)
    await stage.clock.advance(0.05)
    reader.read(watcher)
    assert reader.messages == 2
    await stage.clock.advance(0.1)
    reader.read(watcher)
    assert reader.messages == 3
    stage.feed.stir()
    await stage.clock.advance(5)
    reader.read(watcher)
    assert reader.messages == 3
    assert not stage.clock._sleepers, "an idle feed must not wake"
    task.cancel()


async def test_a_look_at_what_has_not_changed_does_not_delay_the_next_change() -> None:
    stage, reader = Stage(), Reader()
    task = asyncio.create_task(stage.feed.run())
    watcher = stage.feed.watch()
    reader.read(watcher)
    stage.feed.stir()
    await stage.clock.advance(0.02)
    stage.store(1)
    await stage.clock.advance(0.02)
    reader.read(watcher)
    assert reader.held == {1}
    task.cancel()


def test_a_state_is_told_at_once() -> None:
    stage, reader = Stage(), Reader()
    watcher = stage.feed.watch()
    reader.read(watcher)
    stage.feed.enter(pb.WORKER_STATE_DRAINING, "")
    reader.read(watcher)
    assert reader.state == pb.WORKER_STATE_DRAINING


Step = Callable[[Stage, list[tuple[Watcher, Reader]]], None]

_HASH = st.integers(0, 40)


@given(st.data())
def test_whatever_happens_a_reader_that_has_read_all_holds_what_the_worker_holds(data: st.DataObject) -> None:
    stage, readers = Stage(), list[tuple[Watcher, Reader]]()
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["store", "remove", "clear", "flush", "join", "leave", "read"])):
            case "store":
                stage.store(*data.draw(st.lists(_HASH, max_size=5)))
            case "remove":
                stage.remove(*data.draw(st.lists(_HASH, max_size=5)))
            case "clear":
                stage.feed.apply(BlockDelta(cleared=True, stored=tuple(data.draw(st.sets(_HASH, max_size=3)))))
            case "flush":
                stage.feed.flush()
            case "join":
                readers.append((stage.feed.watch(), Reader()))
            case "leave" if readers:
                readers.pop()[0].close()
            case "read" if readers:
                watcher, reader = data.draw(st.sampled_from(readers))
                reader.read(watcher, data.draw(st.integers(1, 3)))
    stage.feed.flush()
    for watcher, reader in readers:
        reader.read(watcher)
        assert reader.held == set(stage.feed.held)
    assert stage.feed.watchers == len(readers)


# Over gRPC, in a worker with a simulated engine


@asynccontextmanager
async def watching(bench: Bench, epoch: int = EPOCH) -> AsyncIterator[Reader]:
    reader = Reader()
    call = bench.stub.Watch(pb.WatchRequest(router_id="r1", epoch=epoch))

    async def read() -> None:
        async for message in call:
            reader.take(message)

    task = asyncio.create_task(read())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        call.cancel()


async def test_a_watch_follows_the_engine_through_evictions() -> None:
    async with Bench(num_blocks=12).running() as bench, watching(bench) as reader:
        router = await bench.session()
        for i in range(12):
            await router.submit(f"a{i}", Leg.WHOLE, max_tokens=70 + 3 * i)
            await router.outputs_of(f"a{i}")
        pool = bench.engine.batch.pool
        await eventually(lambda: reader.held == pool.contents and bool(reader.held))
        assert bench.worker.feed.held == pool.contents
        await eventually(lambda: reader.load == bench.worker.load())


async def test_a_watch_tells_load_state_and_the_end_of_the_leases() -> None:
    async with Bench(Role.PREFILL, step_s=0.5).running() as bench, watching(bench) as reader:
        await eventually(lambda: reader.state == pb.WORKER_STATE_READY)
        router = await bench.session()
        await router.submit("a", Leg.PREFILL)
        await eventually(lambda: reader.load.queued_prefill_tokens == 40)
        await router.outputs_of("a")
        await eventually(lambda: reader.load.leases == 1 and reader.load.queued_prefill_tokens == 0)
        await router.call.write(pb.SessionRequest(release=pb.ReleaseLease(lease_id="lease-of-a")))
        await eventually(lambda: reader.load.leases == 0)
        assert await bench.worker.drain(5.0)
        await eventually(lambda: reader.state == pb.WORKER_STATE_DRAINING)


async def test_a_watch_of_an_epoch_that_is_over_is_refused() -> None:
    async with Bench().running() as bench:
        call = bench.stub.Watch(pb.WatchRequest(router_id="r1", epoch=EPOCH - 1))
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_router_that_leaves_is_forgotten_and_closing_ends_the_others() -> None:
    async with Bench().running() as bench:
        async with watching(bench):
            await eventually(lambda: bench.worker.feed.watchers == 1)
        await eventually(lambda: bench.worker.feed.watchers == 0)
        call = bench.stub.Watch(pb.WatchRequest(router_id="r1", epoch=EPOCH))
        await call.read()
        closing = asyncio.create_task(bench.worker.close())
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "closing" in str(await call.details())
        await closing


async def test_a_router_that_does_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.worker_watch._WRITE_S", 0.2)
    monkeypatch.setattr("cluster.call_abort._ABORT_S", 0.2)
    async with Bench().running() as bench:
        bench.worker.feed.apply(BlockDelta(stored=tuple(range(10**6))))  # more than fits on the way
        call = bench.stub.Watch(pb.WatchRequest(router_id="r1", epoch=EPOCH))
        await eventually(lambda: bench.worker.feed.watchers == 1)
        await eventually(lambda: bench.worker.feed.watchers == 0)
        with pytest.raises(grpc.aio.AioRpcError, match="has not read for"):
            _ = [message async for message in call]


async def test_a_dead_engine_is_told_to_who_watches() -> None:
    async with Bench().running() as bench, watching(bench) as reader:
        bench.engine.fail("power cut")
        await eventually(lambda: reader.state == pb.WORKER_STATE_FAILED)


async def test_an_idle_worker_says_that_it_is_there_and_its_news_keep_their_numbers() -> None:
    feed = WatchFeed(pb.Load, RealClock())
    watcher = feed.watch(beat_s=0.05)
    messages = aiter(watcher)
    first, second, third = [await anext(messages) for _ in range(3)]
    assert first.cleared
    assert second == third == pb.WatchReply(beat=True, complete=True)
    feed.apply(BlockDelta(stored=(5,)))
    feed.flush()
    news = await anext(messages)
    assert (list(news.stored), news.number, news.beat) == ([5], first.number + 1, False)
    watcher.close()


async def test_who_does_not_ask_for_beats_gets_none() -> None:
    watcher = WatchFeed(pb.Load, RealClock()).watch()
    messages = aiter(watcher)
    await anext(messages)
    waiting = asyncio.create_task(anext(messages, None))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    watcher.close()
    assert await waiting is None
