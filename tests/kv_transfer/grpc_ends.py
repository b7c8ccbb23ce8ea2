"""Two ends of the gRPC transport in one process, and peers whose streams go as a test wants them.

What is read is always READ: some blocks of a writer's cache into other blocks of the reader's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from cluster.tls import PLAIN, Channels
from kv_transfer.block_frames import LEAST_FRAME_BYTES, StreamLimits
from kv_transfer.block_server import BlockServer
from kv_transfer.grpc_transport import GrpcPeer, GrpcTransport
from kv_transfer.refusals import ERROR_KEY
from kv_transfer.transport import BlockRead, Endpoint
from protos.baton.v1 import kv_pb2 as pb
from tests.kv_transfer.block_caches import (
    RULE,
    Cache,
    block_values,
    empty_cache,
    filled_cache,
    layout_of,
    sealed_ticket,
)
from tests.kv_transfer.scripted_blocks import Answer, ScriptedBlocks, frame, stall
from tests.waiting import eventually

LAYERS, BLOCKS, BLOCK_BYTES = 3, 16, 100_000  # frames end within blocks and within layers
FRAME = LEAST_FRAME_BYTES
LIMITS = StreamLimits(FRAME, 12 * FRAME, most_streams=2)
IDS, TARGETS = (3, 1, 15, 8), (0, 7, 6, 11)
SIZE = LAYERS * len(IDS) * BLOCK_BYTES
VALUES = block_values(LAYERS, BLOCKS)
WHOLE = b"".join(bytes([VALUES[layer, block]]) * BLOCK_BYTES for layer in range(LAYERS) for block in IDS)
READ = BlockRead(sealed_ticket(IDS), IDS, TARGETS)


@dataclass
class End:
    """One engine: its cache, what it serves and what it reads with. `scripted`: peers made for it."""

    cache: Cache
    server: BlockServer
    transport: GrpcTransport
    scripted: list[ScriptedBlocks] = field(default_factory=list)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint({"grpc": self.transport.offer()}, layout_of(self.cache))

    def landed(self) -> bool:
        """The whole of READ is where it belongs, and nothing else was touched."""
        expected = np.zeros_like(self.cache)
        for source, target in zip(IDS, TARGETS, strict=True):
            expected[:, target] = VALUES[:, source, None]
        return bool(np.array_equal(self.cache, expected))

    def peer_at(self, address: str) -> GrpcPeer:
        return self.transport.connect(Endpoint({"grpc": address.encode()}, layout_of(self.cache)))

    def scripted_peer(self, *answers: Answer) -> tuple[ScriptedBlocks, GrpcPeer]:
        """A peer that answers one stream after another as told."""
        blocks = ScriptedBlocks(list(answers))
        self.scripted.append(blocks)
        return blocks, self.peer_at(blocks.address)


@asynccontextmanager
async def reading_end(channels: Channels = PLAIN) -> AsyncIterator[End]:
    """Proves at its end that no peer, stream, task or thread of any end is left."""
    threads = set(threading.enumerate())
    async with _end(empty_cache(LAYERS, BLOCKS, BLOCK_BYTES), LIMITS, channels) as end:
        yield end
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await eventually(lambda: not [t for t in set(threading.enumerate()) - threads if t.name.startswith("kv-blocks")])


@asynccontextmanager
async def writing_end(limits: StreamLimits = LIMITS, channels: Channels = PLAIN) -> AsyncIterator[End]:
    async with _end(filled_cache(LAYERS, BLOCKS, BLOCK_BYTES), limits, channels) as end:
        yield end


@asynccontextmanager
async def _end(cache: Cache, limits: StreamLimits, channels: Channels) -> AsyncIterator[End]:
    server = BlockServer(layout_of(cache), RULE, limits, "127.0.0.1", "127.0.0.1", channels)
    end = End(cache, server, GrpcTransport(layout_of(cache), limits, server, channels))
    try:
        yield end
        await eventually(lambda: server.streams == 0)
    finally:
        end.transport.close()
        for blocks in end.scripted:
            await asyncio.to_thread(blocks.close)
    assert repr(end.transport).startswith("<GrpcTransport peers=0")


def frames(offset: int) -> Iterator[bytes]:
    """Good frames, to the end."""
    for at in range(offset, SIZE, FRAME):
        yield frame(WHOLE[at : at + FRAME], at)


def all_frames(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from frames(request.offset)


def no_frame(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from ()


def never(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    stall(context)
    yield from ()


def two_frames_then(*more: bytes) -> Answer:
    def answer(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        good = frames(request.offset)
        yield next(good)
        yield next(good)
        yield from more

    return answer


def breaks(status: grpc.StatusCode, error: str = "", after: int = 0) -> Answer:
    def answer(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        good = frames(request.offset)
        for _ in range(after):
            yield next(good)
        if error:
            context.set_trailing_metadata(((ERROR_KEY, error),))
        context.abort(status, "as the test wants it")

    return answer
