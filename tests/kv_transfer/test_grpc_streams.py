"""Streams that break, stall or are given up: a read goes on behind its last good frame or ends with a reason, and then
nothing more is written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from kv_transfer.transport import BlockRead
from protos.baton.v1 import kv_pb2 as pb
from tests.kv_transfer.grpc_ends import (
    BLOCK_BYTES,
    BLOCKS,
    FRAME,
    LAYERS,
    READ,
    SIZE,
    TARGETS,
    WHOLE,
    End,
    all_frames,
    breaks,
    frames,
    never,
    no_frame,
    reading_end,
    two_frames_then,
    writing_end,
)
from tests.kv_transfer.scripted_blocks import Answer, frame, mortal_blocks
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def reader() -> AsyncIterator[End]:
    async with reading_end() as end:
        yield end


@pytest.fixture
async def writer(reader: End) -> AsyncIterator[End]:
    async with writing_end() as end:
        yield end


Broken = {
    "a corrupt frame": two_frames_then(frame(b"x" * FRAME, 2 * FRAME)[:-1] + b"y"),
    "garbage": two_frames_then(b"\xff" * 100),
    "a frame that comes twice": two_frames_then(frame(WHOLE[FRAME : 2 * FRAME], FRAME)),
    "a frame left out": two_frames_then(frame(WHOLE[3 * FRAME : 4 * FRAME], 3 * FRAME)),
    "a frame larger than agreed": two_frames_then(frame(WHOLE[2 * FRAME : 3 * FRAME + 1], 2 * FRAME)),
    "a message larger than the channel takes": two_frames_then(bytes(2 * FRAME)),
    "an empty frame": two_frames_then(frame(b"", 2 * FRAME)),
    "a stream that ends early": two_frames_then(),
    "a connection that breaks": breaks(grpc.StatusCode.UNAVAILABLE, after=2),
    "a writer that breaks": breaks(grpc.StatusCode.UNKNOWN, after=2),
}


@pytest.mark.parametrize("case", Broken)
async def test_a_broken_stream_goes_on_behind_its_last_good_frame(reader: End, case: str) -> None:
    blocks, peer = reader.scripted_peer(Broken[case], all_frames)
    await reader.transport.read(peer, READ)
    assert reader.landed()
    assert [request.offset for request in blocks.asked] == [0, 2 * FRAME], "no good byte is sent twice"
    assert reader.transport.resumed == 1


async def test_a_read_may_break_again_and_again_as_long_as_it_gets_on(reader: End) -> None:
    blocks, peer = reader.scripted_peer(breaks(grpc.StatusCode.UNAVAILABLE, after=1))
    await reader.transport.read(peer, READ)
    assert reader.landed()
    assert [request.offset for request in blocks.asked] == list(range(0, SIZE, FRAME))


@pytest.mark.parametrize("answer", [no_frame, breaks(grpc.StatusCode.UNAVAILABLE)])
async def test_a_read_that_gets_nowhere_fails_after_a_few_tries(reader: End, answer: Answer) -> None:
    blocks, peer = reader.scripted_peer(two_frames_then(), answer)
    with pytest.raises(TransferFailed, match=rf"{2 * FRAME} of {SIZE} bytes had landed and 3 more tries"):
        await reader.transport.read(peer, READ)
    assert len(blocks.asked) == 5


async def test_more_bytes_than_were_asked_for_are_never_written(reader: End) -> None:
    def too_much(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield frame(b"x" * FRAME, request.offset)

    _, peer = reader.scripted_peer(too_much)
    with pytest.raises(TransferFailed, match="is the next"):
        await reader.transport.read(peer, BlockRead(b"", (1,) * 3, (0, 1, 2)))
    assert not reader.cache[:, 3:].any()


@pytest.mark.parametrize(
    ("status", "error", "ours"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "TicketRefused", TicketRefused),
        (grpc.StatusCode.PERMISSION_DENIED, "LeaseLost", LeaseLost),
        (grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest", TransferFailed),
        (grpc.StatusCode.UNIMPLEMENTED, "", TransferFailed),
    ],
)
async def test_a_refusal_is_final(
    reader: End,
    status: grpc.StatusCode,
    error: str,
    ours: type[TransferFailed],
) -> None:
    blocks, peer = reader.scripted_peer(breaks(status, error, after=1))
    with pytest.raises(TransferFailed, match="as the test wants it") as caught:
        await reader.transport.read(peer, READ)
    assert type(caught.value) is ours
    assert len(blocks.asked) == 1


async def test_a_stalled_writer_costs_the_reader_no_more_than_its_deadline(reader: End) -> None:
    blocks, peer = reader.scripted_peer(never)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.transport.read(peer, READ)
    assert await asyncio.to_thread(blocks.ended.wait, 10), "the writer is told at once"


async def test_after_a_read_is_cancelled_in_mid_stream_nothing_is_written_any_more(reader: End) -> None:
    go_on = threading.Event()

    def held_up(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        good = frames(request.offset)
        yield next(good)
        go_on.wait()
        yield from good

    blocks, peer = reader.scripted_peer(held_up)
    reading = asyncio.ensure_future(reader.transport.read(peer, READ))
    await eventually(lambda: bool(reader.cache.any()))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    before = reader.cache.copy()
    assert await asyncio.to_thread(blocks.ended.wait, 10), "the writer is told at once"
    go_on.set()
    untouched = [block for block in range(BLOCKS) if block not in TARGETS][: len(TARGETS)]
    # While another read brings as many bytes, those of the first would have arrived, too.
    await reader.transport.read(reader.scripted_peer(all_frames)[1], BlockRead(b"", READ.source, tuple(untouched)))
    assert reader.cache[:, untouched].all()
    reader.cache[:, untouched] = 0
    assert np.array_equal(reader.cache, before)


async def test_a_read_cancelled_at_any_moment_leaves_nothing_behind(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    for turns in range(60):
        reading = asyncio.ensure_future(reader.transport.read(peer, READ))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        seen = reader.cache.copy()
        await asyncio.sleep(0)
        assert np.array_equal(reader.cache, seen)
    await eventually(lambda: writer.server.streams == 0)
    await reader.transport.read(peer, READ)
    assert reader.landed()


async def test_a_writer_that_is_killed_in_mid_stream_fails_its_reader_at_once(reader: End) -> None:
    with mortal_blocks((LAYERS, BLOCKS, BLOCK_BYTES), FRAME) as mortal:
        peer = reader.transport.connect(mortal.endpoint)
        reading = asyncio.ensure_future(reader.transport.read(peer, READ))
        await eventually(lambda: bool(reader.cache.any()))
        await asyncio.to_thread(mortal.kill)
        async with asyncio.timeout(10):
            with pytest.raises(TransferFailed, match=f"UNAVAILABLE.*{FRAME} of {SIZE} bytes"):
                await reading
        async with asyncio.timeout(10):
            with pytest.raises(TransferFailed, match="UNAVAILABLE"):
                await reader.transport.probe(peer)


async def test_a_writer_that_closes_in_mid_stream_fails_its_reader(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    reading = asyncio.ensure_future(reader.transport.read(peer, READ))
    await eventually(lambda: writer.server.streams > 0 or reading.done())
    await asyncio.to_thread(writer.server.close)
    async with asyncio.timeout(10):
        (outcome,) = await asyncio.gather(reading, return_exceptions=True)
    assert isinstance(outcome, TransferFailed) or (outcome is None and reader.landed())
