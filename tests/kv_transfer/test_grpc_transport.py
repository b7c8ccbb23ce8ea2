"""Blocks over gRPC: bytes arrive where they belong, and whatever happens to a stream, its reader ends and nothing more
is written."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from kv_transfer.block_frames import LEAST_FRAME_BYTES, StreamLimits
from kv_transfer.block_server import BlockServer
from kv_transfer.grpc_transport import GrpcPeer, GrpcTransport
from kv_transfer.source_server import ERROR_KEY
from kv_transfer.transport import BlockRead, Endpoint, Layout, Region
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
from tests.kv_transfer.scripted_blocks import Answer, ScriptedBlocks, frame, mortal_blocks, stall
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(60)

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
    """One engine: its cache, what it serves and what it reads with."""

    cache: Cache
    server: BlockServer
    transport: GrpcTransport

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint({"grpc": self.transport.offer()}, layout_of(self.cache))

    def landed(self) -> bool:
        """The whole of READ is where it belongs, and nothing else was touched."""
        expected = np.zeros_like(self.cache)
        for source, target in zip(IDS, TARGETS, strict=True):
            expected[:, target] = VALUES[:, source, None]
        return bool(np.array_equal(self.cache, expected))


def end_over(cache: Cache, limits: StreamLimits = LIMITS) -> End:
    server = BlockServer(layout_of(cache), RULE, limits, "127.0.0.1", "127.0.0.1")
    return End(cache, server, GrpcTransport(layout_of(cache), limits, server))


@pytest.fixture
async def nothing_is_left() -> AsyncIterator[None]:
    threads = set(threading.enumerate())
    yield
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await eventually(lambda: not [t for t in set(threading.enumerate()) - threads if t.name.startswith("kv-blocks")])


@pytest.fixture
async def reader(nothing_is_left: None) -> AsyncIterator[End]:
    end = end_over(empty_cache(LAYERS, BLOCKS, BLOCK_BYTES))
    yield end
    end.transport.close()
    assert repr(end.transport).startswith("<GrpcTransport peers=0")
    assert end.server.streams == 0


@pytest.fixture
async def writer(nothing_is_left: None) -> AsyncIterator[End]:
    end = end_over(filled_cache(LAYERS, BLOCKS, BLOCK_BYTES))
    yield end
    await eventually(lambda: end.server.streams == 0)
    end.transport.close()


@pytest.fixture
async def scripted(nothing_is_left: None, reader: End) -> AsyncIterator[Callable[..., tuple[ScriptedBlocks, GrpcPeer]]]:
    """Makes a peer that answers one stream after another as told."""
    made: list[ScriptedBlocks] = []

    def make(*answers: Answer) -> tuple[ScriptedBlocks, GrpcPeer]:
        blocks = ScriptedBlocks(list(answers))
        made.append(blocks)
        return blocks, peer_at(reader, blocks.address)

    yield make
    for blocks in made:
        await asyncio.to_thread(blocks.close)


def peer_at(reader: End, address: str) -> GrpcPeer:
    return reader.transport.connect(Endpoint({"grpc": address.encode()}, layout_of(reader.cache)))


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


async def test_blocks_of_every_layer_land_in_the_blocks_they_were_meant_for(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    await reader.transport.read(peer, READ)
    assert reader.landed()
    assert reader.transport.resumed == 0


async def test_reads_from_one_peer_run_side_by_side_and_wait_for_their_turn(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    reads = [BlockRead(sealed_ticket((i,)), (i,), (i,)) for i in range(BLOCKS)]
    await asyncio.gather(*(reader.transport.read(peer, read) for read in reads))
    assert np.array_equal(reader.cache, writer.cache)
    assert writer.server.refused == {}


async def test_a_read_of_nothing_asks_nobody(reader: End) -> None:
    await reader.transport.read(peer_at(reader, "127.0.0.1:1"), BlockRead(b"", (), ()))


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


async def test_a_busy_writer_is_asked_again_until_it_has_room(reader: End) -> None:
    end = end_over(filled_cache(LAYERS, BLOCKS, BLOCK_BYTES), StreamLimits(FRAME, 3 * FRAME, most_streams=1))
    every = tuple(range(BLOCKS))
    request = pb.ReadBlocksRequest(ticket=sealed_ticket(every), block_ids=every)
    with grpc.insecure_channel(end.server.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/baton.v1.KvBlocks/ReadBlocks")
        holder = stream(request.SerializeToString(), timeout=30)
        await asyncio.to_thread(next, holder)
        reading = asyncio.ensure_future(reader.transport.read(peer_at(reader, end.server.address), READ))
        await eventually(lambda: end.server.refused.get("busy", 0) > 5)
        holder.cancel()
        await reading
    assert reader.landed()
    end.transport.close()


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
async def test_a_broken_stream_goes_on_behind_its_last_good_frame(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]], case: str
) -> None:
    blocks, peer = scripted(Broken[case], all_frames)
    await reader.transport.read(peer, READ)
    assert reader.landed()
    assert [request.offset for request in blocks.asked] == [0, 2 * FRAME], "no good byte is sent twice"
    assert reader.transport.resumed == 1


async def test_a_read_may_break_again_and_again_as_long_as_it_gets_on(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]]
) -> None:
    blocks, peer = scripted(breaks(grpc.StatusCode.UNAVAILABLE, after=1))
    await reader.transport.read(peer, READ)
    assert reader.landed()
    assert [request.offset for request in blocks.asked] == list(range(0, SIZE, FRAME))


@pytest.mark.parametrize("answer", [no_frame, breaks(grpc.StatusCode.UNAVAILABLE)])
async def test_a_read_that_gets_nowhere_fails_after_a_few_tries(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]], answer: Answer
) -> None:
    blocks, peer = scripted(two_frames_then(), answer)
    with pytest.raises(TransferFailed, match=rf"{2 * FRAME} of {SIZE} bytes had landed and 3 more tries"):
        await reader.transport.read(peer, READ)
    assert len(blocks.asked) == 5


async def test_more_bytes_than_were_asked_for_are_never_written(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]]
) -> None:
    def too_much(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield frame(b"x" * FRAME, request.offset)

    _, peer = scripted(too_much)
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
    scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]],
    status: grpc.StatusCode,
    error: str,
    ours: type[TransferFailed],
) -> None:
    blocks, peer = scripted(breaks(status, error, after=1))
    with pytest.raises(TransferFailed, match="as the test wants it") as caught:
        await reader.transport.read(peer, READ)
    assert type(caught.value) is ours
    assert len(blocks.asked) == 1


async def test_a_stalled_writer_costs_the_reader_no_more_than_its_deadline(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]]
) -> None:
    blocks, peer = scripted(never)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.transport.read(peer, READ)
    assert await asyncio.to_thread(blocks.ended.wait, 10), "the writer is told at once"


async def test_after_a_read_is_cancelled_in_mid_stream_nothing_is_written_any_more(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]]
) -> None:
    go_on = threading.Event()

    def held_up(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        good = frames(request.offset)
        yield next(good)
        go_on.wait()
        yield from good

    blocks, peer = scripted(held_up)
    reading = asyncio.ensure_future(reader.transport.read(peer, READ))
    await eventually(lambda: bool(reader.cache.any()))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    before = reader.cache.copy()
    assert await asyncio.to_thread(blocks.ended.wait, 10), "the writer is told at once"
    go_on.set()
    await reader.transport.read(scripted(all_frames)[1], BlockRead(b"", IDS, TARGETS))  # time for a late frame to land
    assert reader.landed()
    reader.cache[:] = before
    assert not reader.landed()


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


async def test_a_probe_proves_that_the_peer_answers(reader: End, writer: End) -> None:
    await reader.transport.probe(reader.transport.connect(writer.endpoint))
    assert writer.server.refused == {}


@pytest.mark.parametrize("answer", [no_frame, all_frames, breaks(grpc.StatusCode.UNAVAILABLE)])
async def test_a_probe_takes_no_other_answer_for_one(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]], answer: Answer
) -> None:
    _, peer = scripted(answer)
    with pytest.raises(TransferFailed):
        await reader.transport.probe(peer)


async def test_a_probe_of_a_stalled_peer_ends_with_its_caller(
    reader: End, scripted: Callable[..., tuple[ScriptedBlocks, GrpcPeer]]
) -> None:
    blocks, peer = scripted(never)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.transport.probe(peer)
    assert await asyncio.to_thread(blocks.ended.wait, 10)


async def test_a_port_that_accepts_and_says_nothing_is_not_reachable(reader: End) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = peer_at(reader, f"127.0.0.1:{mute.getsockname()[1]}")
        for attempt in (reader.transport.probe(peer), reader.transport.read(peer, READ)):
            with pytest.raises((TimeoutError, TransferFailed)):
                await within(0.3, attempt)
        reader.transport.disconnect(peer)


async def within(seconds: float, attempt: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await attempt


async def test_the_loop_is_never_held_for_much_longer_than_a_frame(reader: End, writer: End) -> None:
    peer = reader.transport.connect(writer.endpoint)
    pauses, stop = [0.0], asyncio.Event()

    async def tick() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            await asyncio.sleep(0)
            pauses.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticking = asyncio.ensure_future(tick())
    for _ in range(10):
        await reader.transport.read(peer, READ)
    stop.set()
    await ticking
    assert max(pauses) < 0.25
