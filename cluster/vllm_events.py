"""What vLLM's engine core tells of its prefix cache: the socket, the messages on it and what they mean.

The only place that knows vLLM's event types. They are declared here as they are on the wire, with what we need of
them; `tests/cluster/test_vllm_events.py` holds them against vLLM's own. Imports no vllm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from cluster.block_changes import BlockDelta
from cluster.block_hashes import chain_seed
from cluster.engine_blocks import EngineBlocks
from cluster.errors import EngineFailed

logger = logging.getLogger(__name__)

_REPLAY_STEPS = 256  # kept by the engine core in case one is lost; a long prompt's is some 50 KiB
_MOST_WAITING = 100_000
_REPLAY_S = 5.0
_LAST = -1
_LONGEST_PATH = 100  # of a socket: the system's limit is a little higher

# Kinds of cache in which a block holds its tokens for every later prompt; others forget by a window or hold state.
_WHOLE_KINDS = {None, "full_attention", "mla_attention"}


class _Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed | _Cleared]


@dataclass(frozen=True, slots=True)
class EventSockets:
    """Where an engine core tells what it stores, in a folder that is private to the engine."""

    folder: Path

    @property
    def events(self) -> str:
        return self._address("blocks")

    @property
    def replay(self) -> str:
        return self._address("blocks-again")

    def kv_events_config(self) -> dict[str, Any]:
        """vLLM's engine argument of the same name. Raises `EngineFailed`: no socket fits into the folder's path."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.events,
            "replay_endpoint": self.replay,
            "buffer_steps": _REPLAY_STEPS,
            "hwm": _MOST_WAITING,
            "max_queue_size": _MOST_WAITING,
        }

    def _address(self, name: str) -> str:
        path = str(self.folder / name)
        if len(path) > _LONGEST_PATH:
            raise EngineFailed(f"{path} is too long for a socket: set TMPDIR to a shorter path")
        return f"ipc://{path}"


class VllmEvents:
    """Follows one engine core. `model` is the served name, part of every chain."""

    def __init__(self, sockets: EventSockets, model: str, num_blocks: int) -> None:
        self._sockets = sockets
        self._context = zmq.asyncio.Context()
        self._events = self._socket(zmq.SUB)
        self._next = 0
        self._closed = False
        self._decoder = msgspec.msgpack.Decoder(_Batch)
        self._meaning = _Meaning(model, EngineBlocks(num_blocks))

    async def start(self) -> None:
        """Connects to an engine core that is up. Raises `EngineFailed`."""
        self._events.setsockopt(zmq.RCVHWM, _MOST_WAITING)
        self._events.setsockopt(zmq.SUBSCRIBE, b"")
        self._events.connect(self._sockets.events)
        # The answer also shows that the subscription, which was sent before, has arrived.
        try:
            for number, payload in await self._replay():
                self._apply(number, payload)
        except TimeoutError:
            raise EngineFailed(f"the engine core did not tell its blocks within {_REPLAY_S:g} s") from None

    async def changes(self) -> BlockDelta:
        """Waits for the next change; no deadline, for an idle engine has nothing to tell. Raises `EngineFailed` once
        closed."""
        blocks = self._meaning.blocks
        while not blocks.changes:
            _, number, payload = await self._receive()
            await self._take(_number(number), payload)
        return blocks.changes.take()

    def close(self) -> None:
        """May be called twice."""
        self._closed = True
        self._context.destroy(linger=0)

    async def _receive(self) -> list[bytes]:
        try:
            return await self._events.recv_multipart()
        except (asyncio.CancelledError, zmq.ZMQError):
            # A socket that is closed cancels whoever waits at it, who is no less alive for that.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise EngineFailed("the engine was closed") from None
            raise

    async def _take(self, number: int, payload: bytes) -> None:
        if number > self._next:
            await self._fill_gap(number)
        self._apply(number, payload)

    async def _fill_gap(self, number: int) -> None:
        """Messages before `number` did not come: asks for them, or forgets everything when they are gone."""
        logger.warning("the engine's block events %d to %d were lost on the way", self._next, number - 1)
        try:
            for missed, payload in await self._replay():
                self._apply(missed, payload)
        except TimeoutError:
            logger.warning("the engine core did not repeat them within %g s", _REPLAY_S)
        if self._next < number:
            self._forget(number)

    def _apply(self, number: int, payload: bytes) -> None:
        if number < self._next:
            return  # came by both ways
        if number > self._next:
            self._forget(number)
        self._next = number + 1
        try:
            batch = self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            logger.error("the engine's block events cannot be read: %s", error)
            self._meaning.blocks.clear()
            return
        for event in batch.events:
            self._meaning.apply(event)

    def _forget(self, number: int) -> None:
        """What is stored from now on will be known again; what was, only once the engine has computed it anew."""
        logger.warning("the engine's blocks are unknown from here: its prefix cache is told anew as it turns over")
        self._meaning.blocks.clear()
        self._next = number

    async def _replay(self) -> list[tuple[int, bytes]]:
        """The messages from the next one on that the engine core still has. Raises `TimeoutError`."""
        found: list[tuple[int, bytes]] = []
        with self._asking() as socket:
            async with asyncio.timeout(_REPLAY_S):
                await socket.send_multipart([b"", self._next.to_bytes(8, "big")])
                while True:
                    _, _, number, payload = await socket.recv_multipart()
                    if _number(number) == _LAST:
                        return found
                    found.append((_number(number), payload))

    @contextmanager
    def _asking(self) -> Iterator[zmq.asyncio.Socket]:
        """A socket for one question: a late answer to another cannot come in between."""
        socket = self._socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(self._sockets.replay)
            yield socket
        finally:
            socket.close(linger=0)

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        return self._context.socket(kind)


class _Meaning:
    """Events to blocks under our hashes."""

    def __init__(self, model: str, blocks: EngineBlocks) -> None:
        self.blocks = blocks
        self._model = model
        self._followed: set[int | None] = set()  # groups of layers whose blocks count

    def apply(self, event: _Stored | _Removed | _Cleared) -> None:
        match event:
            case _Stored():
                self._stored(event)
            case _Removed() if event.group_idx in self._followed and _on_device(event.medium):
                self.blocks.removed(event.block_hashes)
            case _Cleared():
                self.blocks.clear()

    def _stored(self, event: _Stored) -> None:
        if event.kv_cache_spec_kind not in _WHOLE_KINDS or not _on_device(event.medium):
            return
        if len(event.token_ids) != len(event.block_hashes) * event.block_size:
            return  # blocks were left out in between: whose tokens are whose is not said
        self._followed.add(event.group_idx)
        keys = event.extra_keys or [None] * len(event.block_hashes)
        salt = _salt(event.lora_name, keys[0]) if event.parent_block_hash is None else ""
        plain = _plain(event.lora_name, keys)
        if plain:
            seed = chain_seed(self._model, event.lora_name or "", salt)
            tokens = event.token_ids[: plain * event.block_size]
            self.blocks.stored(seed, event.parent_block_hash, event.block_hashes[:plain], tokens)


def _salt(lora: str | None, keys: list[Any] | None) -> str:
    """A prompt's first block names its LoRA, then what is not text, then its salt."""
    last = keys[-1] if keys and len(keys) > (lora is not None) else ""
    return last if isinstance(last, str) else ""


def _plain(lora: str | None, keys: list[list[Any] | None]) -> int:
    """How many blocks come before the first that holds more than tokens, an image perhaps: the router hashes tokens
    only, and must not take another image for this one."""
    for index, of_block in enumerate(keys):
        named = 1 if lora is None else 2
        if of_block and (len(of_block) > named or not all(isinstance(key, str) for key in of_block)):
            return index
    return len(keys)


def _on_device(medium: str | None) -> bool:
    return medium in (None, "GPU")  # said of the CPU's own cache too; other media are lower tiers


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)
