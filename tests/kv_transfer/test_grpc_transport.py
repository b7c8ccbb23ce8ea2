"""The gRPC transport as a whole: bytes land where they belong, refusals keep their meaning, a probe proves reach."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable

import grpc
import numpy as np
import pytest

from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from kv_transfer import grpc_transport
from kv_transfer.block_frames import Frame, decode
from kv_transfer.connections import Link
from kv_transfer.transport import BlockRead, Endpoint, Layout, Region
from kv_transfer.turns import read_in_turn
from tests.kv_transfer.block_caches import RULE, layout_of, sealed_ticket
from tests.kv_transfer.grpc_ends import (
    BLOCKS,
    FRAME,
    IDS,
    LIMITS,
    READ,
    SIZE,
    TARGETS,
    End,
    all_frames,
    breaks,
    never,
    no_frame,
    reading_end,
    writing_end,
)
from tests.kv_transfer.scripted_blocks import Answer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def reader() -> AsyncIterator[End]:
    async with reading_end() as end:
        yield end


@pytest.fixture
async def writer(reader: End) -> AsyncIterator[End]:
    async with writing_end() as end:
        yield end


async def test_blocks_of_every_layer_land_in_the_blocks_they_were_meant_for(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    await reader.transport.read(peer, READ)
    assert reader.landed()
    assert reader.transport.resumed == 0


async def test_reads_from_one_peer_run_side_by_side_and_wait_for_their_turn(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    reads = [BlockRead(sealed_ticket((i,)), (i,), (i,)) for i in range(BLOCKS)]

    link = Link(reader.transport, peer)
    await asyncio.gather(*(read_in_turn(link, read, 30.0, lambda: None, random.random) for read in reads))
    assert np.array_equal(reader.cache, writer.cache)
    # A stream whose last byte has landed may still count at the writer when the next one comes; without turns, ten and
    # more are refused.
    assert sum(writer.server.refused.values()) <= LIMITS.streams


async def test_a_read_of_nothing_asks_nobody(reader: End) -> None:
    await reader.transport.read(reader.peer_at("127.0.0.1:1"), BlockRead(b"", (), ()))


async def test_a_peer_can_be_forgotten_and_connected_again(reader: End, writer: End) -> None:
    for _ in range(3):
        peer = reader.transport.connect(writer.endpoint)
        await reader.transport.read(peer, READ)
        reader.transport.disconnect(peer)
        reader.transport.disconnect(peer)
    assert reader.landed()


async def test_a_writer_of_other_block_sizes_is_refused(reader: End, writer: End) -> None:
    regions = tuple(
        Region(r.address, r.stride, r.block_bytes // 2, r.num_blocks) for r in writer.endpoint.layout.regions
    )
    with pytest.raises(TransferFailed, match="other sizes"):
        reader.transport.connect(Endpoint(writer.endpoint.offers, Layout(regions)))


@pytest.mark.parametrize("offer", [b"", b"\xff\xff", b"host", b"host:port", b":1", b"h:0", b"h:70000"])
async def test_an_offer_that_is_no_address_is_refused(reader: End, offer: bytes) -> None:
    with pytest.raises(TransferFailed, match="host:port"):
        reader.transport.connect(Endpoint({"grpc": offer}, layout_of(reader.cache)))


async def test_target_blocks_that_are_not_there_are_refused(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    with pytest.raises(TransferFailed, match="one of the 16"):
        await reader.transport.read(peer, BlockRead(READ.ticket, IDS, (0, 1, 2, BLOCKS)))


async def test_what_the_writer_refuses_is_our_own_error_with_its_words(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    old = sealed_ticket(IDS, epoch=RULE.epoch - 1)
    with pytest.raises(LeaseLost, match="is of epoch 6, this engine's is 7"):
        await reader.transport.read(peer, BlockRead(old, IDS, TARGETS))
    foreign = sealed_ticket(IDS, secret=b"foreign")
    with pytest.raises(TicketRefused, match="same ticket secret"):
        await reader.transport.read(peer, BlockRead(foreign, IDS, TARGETS))
    assert writer.server.refused == {"epoch": 1, "ticket": 1}
    assert not reader.cache.any()


async def test_a_probe_proves_that_the_peer_answers(reader: End, writer: End) -> None:
    await reader.transport.probe(reader.transport.connect(writer.endpoint))
    assert writer.server.refused == {}


@pytest.mark.parametrize("answer", [no_frame, all_frames, breaks(grpc.StatusCode.UNAVAILABLE)])
async def test_a_probe_takes_no_other_answer_for_one(reader: End, answer: Answer) -> None:
    _, peer = reader.scripted_peer(answer)
    with pytest.raises(TransferFailed):
        await reader.transport.probe(peer)


async def test_a_probe_of_a_stalled_peer_ends_with_its_caller(reader: End) -> None:
    blocks, peer = reader.scripted_peer(never)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.transport.probe(peer)
    assert await asyncio.to_thread(blocks.ended.wait, 10)


async def test_a_port_that_accepts_and_says_nothing_is_not_reachable(reader: End) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = reader.peer_at(f"127.0.0.1:{mute.getsockname()[1]}")
        for attempt in (reader.transport.probe(peer), reader.transport.read(peer, READ)):
            with pytest.raises((TimeoutError, TransferFailed)):
                await within(0.3, attempt)
        reader.transport.disconnect(peer)


async def within(seconds: float, attempt: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await attempt


async def test_between_two_frames_of_a_read_the_loop_is_free_for_others(
    reader: End, writer: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = reader.transport.connect(writer.endpoint)
    landed, stop = 0, asyncio.Event()
    at_once: list[int] = []

    def counted(message: bytes, most: int) -> Frame:
        nonlocal landed
        landed += 1
        return decode(message, most)

    async def tick() -> None:
        while not stop.is_set():
            before = landed
            await asyncio.sleep(0)
            at_once.append(landed - before)

    monkeypatch.setattr(grpc_transport, "decode", counted)
    ticking = asyncio.ensure_future(tick())
    for _ in range(10):
        await reader.transport.read(peer, READ)
    stop.set()
    await ticking
    assert (max(at_once), sum(at_once)) == (1, 10 * -(-SIZE // FRAME))
