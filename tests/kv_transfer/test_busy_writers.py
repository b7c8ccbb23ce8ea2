"""gRPC writers without room: asked again, told from those that fail, and of no cost to the readers of others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest

from cluster.errors import Overloaded, TransferFailed
from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_server import METHOD, SERVICE
from kv_transfer.connections import Link
from kv_transfer.mover import Mover, PullJob
from kv_transfer.turns import read_in_turn
from protos.baton.v1 import kv_pb2 as pb
from tests.kv_transfer.block_caches import RULE, sealed_ticket
from tests.kv_transfer.conftest import READER, Source, rules
from tests.kv_transfer.grpc_ends import (
    BLOCKS,
    FRAME,
    IDS,
    LIMITS,
    READ,
    TARGETS,
    End,
    all_frames,
    breaks,
    reading_end,
    two_frames_then,
    writing_end,
)
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(60)

BUSY = breaks(grpc.StatusCode.RESOURCE_EXHAUSTED, "Overloaded")
FULL = breaks(grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.fixture
async def reader() -> AsyncIterator[End]:
    async with reading_end() as end:
        yield end


@dataclass
class Held:
    """A writer whose only stream is taken, by somebody who does not read on."""

    end: End
    holder: Any  # the call

    @property
    def refused(self) -> int:
        return self.end.server.refused.get("busy", 0)


@asynccontextmanager
async def held_writer() -> AsyncIterator[Held]:
    every = tuple(range(BLOCKS))
    request = pb.ReadBlocksRequest(ticket=sealed_ticket(every), block_ids=every).SerializeToString()
    async with writing_end(StreamLimits(FRAME, 3 * FRAME, most_streams=1)) as end:
        with grpc.insecure_channel(end.server.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
            stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/{METHOD}")
            holder = stream(request, timeout=30)
            await asyncio.to_thread(next, holder)
            yield Held(end, holder)
            holder.cancel()


def nothing() -> None: ...


async def test_a_busy_writer_is_asked_again_until_it_has_room(reader: End) -> None:
    async with held_writer() as writer:
        link = Link(reader.transport, reader.peer_at(writer.end.server.address))
        reading = asyncio.create_task(read_in_turn(link, READ, 30.0, nothing, random.random))
        await eventually(lambda: writer.refused > 5)
        writer.holder.cancel()
        await reading
    assert reader.landed()


async def test_a_writer_that_stays_busy_is_told_from_one_that_fails(reader: End) -> None:
    _, peer = reader.scripted_peer(BUSY)
    with pytest.raises(Overloaded, match="as the test wants it"):
        await read_in_turn(Link(reader.transport, peer), READ, 0.4, nothing, random.random)


async def test_a_read_that_has_begun_asks_a_busy_writer_again_for_the_rest(reader: End) -> None:
    blocks, peer = reader.scripted_peer(two_frames_then(), *[BUSY] * 5, all_frames)
    await reader.transport.read(peer, replace(READ, busy_s=30.0))
    assert reader.landed()
    assert [request.offset for request in blocks.asked] == [0, *[2 * FRAME] * 6]


async def test_a_writer_that_stays_busy_in_mid_read_is_told_from_one_that_fails(reader: End) -> None:
    _, peer = reader.scripted_peer(two_frames_then(), BUSY)
    with pytest.raises(Overloaded, match="as the test wants it"):
        await reader.transport.read(peer, replace(READ, busy_s=0.2))


async def test_a_writer_whose_grpc_takes_no_more_calls_is_busy_not_broken(reader: End) -> None:
    """It answers then without a thread of ours, so without our words."""
    _, peer = reader.scripted_peer(FULL)
    with pytest.raises(Overloaded, match="RESOURCE_EXHAUSTED"):
        await reader.transport.read(peer, READ)
    with pytest.raises(Overloaded, match="RESOURCE_EXHAUSTED"):
        await reader.transport.probe(peer)


async def test_a_message_that_is_too_large_is_no_sign_of_load(reader: End) -> None:
    def too_large(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield bytes(2 * FRAME)

    _, peer = reader.scripted_peer(too_large)
    with pytest.raises(TransferFailed, match="larger than max"):
        await reader.transport.read(peer, READ)
    with pytest.raises(TransferFailed, match="larger than max"):
        await reader.transport.probe(peer)


async def test_reads_from_an_idle_writer_go_on_while_as_many_as_there_are_turns_wait_for_a_busy_one(
    reader: End,
) -> None:
    mover = Mover([reader.transport], READER, replace(rules(), rungs={"grpc": rules(read_s=20.0).rungs["fast"]}))
    async with held_writer() as busy, writing_end() as idle:
        with closing(source_of(busy.end)) as held, closing(source_of(idle)) as free:
            waiting = [asyncio.create_task(mover.pull(job(held))) for _ in range(LIMITS.streams)]
            await eventually(lambda: busy.refused >= 2 * LIMITS.streams)
            async with asyncio.timeout(5):
                result = await mover.pull(job(free))
            assert (result.outcome, result.transport) == ("landed", "grpc")
            assert not any(pull.done() for pull in waiting)
            for pull in waiting:
                pull.cancel()
            await asyncio.gather(*waiting)
        await mover.close()
    assert reader.landed()


def source_of(writer: End) -> Source:
    return Source(RULE.epoch, endpoint=writer.endpoint)


def job(source: Source) -> PullJob:
    return PullJob("request", source.offer(IDS), sealed_ticket(IDS), IDS, TARGETS)
