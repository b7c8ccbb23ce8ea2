"""KvBlocks as its readers and its enemies see it: what is refused, what is counted, and that it goes on serving."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias

import grpc
import pytest

from kv_transfer import block_server
from kv_transfer.block_frames import LEAST_FRAME_BYTES, StreamLimits, decode
from kv_transfer.block_permit import ReadPermit, TicketRule, permit
from kv_transfer.block_server import METHOD, SERVICE, BlockServer
from kv_transfer.refusals import ERROR_KEY
from kv_transfer.transport import Layout
from protos.baton.v1 import kv_pb2 as pb
from tests.kv_transfer.block_caches import RULE, block_values, filled_cache, layout_of, sealed_ticket
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(60)

LAYERS, BLOCKS, BLOCK_BYTES = 3, 64, 128 << 10
LIMITS = StreamLimits(LEAST_FRAME_BYTES, 16 * LEAST_FRAME_BYTES, most_streams=3)
DEADLINE_S = 20.0
EVERY = tuple(range(BLOCKS))

ReadBlocks: TypeAlias = "grpc.UnaryStreamMultiCallable[bytes, bytes]"


@pytest.fixture
def server() -> Iterator[BlockServer]:
    cache = filled_cache(LAYERS, BLOCKS, BLOCK_BYTES)
    before = set(threading.enumerate())
    running = BlockServer(layout_of(cache), RULE, LIMITS, "127.0.0.1", "127.0.0.1")
    yield running
    running.close()
    assert running.streams == 0
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("kv-blocks")]
    assert left == []


@pytest.fixture
def read_blocks(server: BlockServer) -> Iterator[ReadBlocks]:
    """The method with nothing of our own reader around it."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]  # the window stays small
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield channel.unary_stream(f"/{SERVICE}/{METHOD}")


def request(
    ids: tuple[int, ...], ticket: bytes | None = None, offset: int = 0, frame_bytes: int = LEAST_FRAME_BYTES
) -> bytes:
    sealed = sealed_ticket(ids) if ticket is None else ticket
    return pb.ReadBlocksRequest(
        ticket=sealed, block_ids=ids, offset=offset, frame_bytes=frame_bytes
    ).SerializeToString()


def sizes(messages: Iterator[bytes]) -> list[int]:
    return [len(decode(message, 4 << 20).data) for message in messages]


def refusal(read_blocks: ReadBlocks, data: bytes, timeout: float | None = DEADLINE_S) -> tuple[grpc.StatusCode, str]:
    """Status and class of the error; the text has a reason."""
    with pytest.raises(grpc.RpcError) as caught:
        list(read_blocks(data, timeout=timeout))
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.details()
    return error.code(), str({item.key: item.value for item in error.trailing_metadata()}.get(ERROR_KEY))


def test_the_bytes_come_in_the_order_asked_layer_by_layer(read_blocks: ReadBlocks) -> None:
    ids, values = (5, 0, 63), block_values(LAYERS, BLOCKS)
    frames = [decode(m, 4 << 20) for m in read_blocks(request(ids), timeout=DEADLINE_S)]
    assert [frame.offset for frame in frames] == list(range(0, 9 * BLOCK_BYTES, LEAST_FRAME_BYTES))
    whole = b"".join(frame.data for frame in frames)
    assert whole == b"".join(bytes([values[layer, block]]) * BLOCK_BYTES for layer in range(LAYERS) for block in ids)


def test_a_broken_read_goes_on_at_any_byte(read_blocks: ReadBlocks) -> None:
    whole = b"".join(decode(m, 4 << 20).data for m in read_blocks(request((1, 2)), timeout=DEADLINE_S))
    rest = [decode(m, 4 << 20) for m in read_blocks(request((1, 2), offset=99_999), timeout=DEADLINE_S)]
    assert rest[0].offset == 99_999
    assert b"".join(frame.data for frame in rest) == whole[99_999:]


@pytest.mark.parametrize(("wanted", "given"), [(1, 256 << 10), (1 << 20, 1 << 20), (1 << 31, 1 << 20), (0, 256 << 10)])
def test_a_frame_is_as_large_as_wanted_within_the_limits(read_blocks: ReadBlocks, wanted: int, given: int) -> None:
    assert sizes(read_blocks(request(EVERY[:30], frame_bytes=wanted), timeout=DEADLINE_S))[0] == given


REFUSED = {
    "a ticket of another secret": ("ticket", "TicketRefused", request((1,), sealed_ticket((1,), secret=b"foreign"))),
    "a ticket with a flipped byte": ("ticket", "TicketRefused", request((1,), b"\x00" + sealed_ticket((1,))[1:])),
    "no ticket": ("ticket", "TicketRefused", request((1,), b"")),
    "an old epoch": ("epoch", "LeaseLost", request((1,), sealed_ticket((1,), epoch=RULE.epoch - 1))),
    "a foreign epoch": ("epoch", "LeaseLost", request((1,), sealed_ticket((1,), epoch=1 << 60))),
    "a block beyond the last": ("blocks", "TicketRefused", request((BLOCKS,))),
    "a block that is not in the ticket": ("blocks", "TicketRefused", request((2,), sealed_ticket((1,)))),
    "a block again and again": ("blocks", "TicketRefused", request((1,) * 1000, sealed_ticket((1,)))),
    "a ticket without blocks": ("blocks", "TicketRefused", request((), sealed_ticket((1,)))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_ticket_does_not_allow_is_refused_and_counted(
    server: BlockServer, read_blocks: ReadBlocks, case: str
) -> None:
    reason, error, data = REFUSED[case]
    assert refusal(read_blocks, data) == (grpc.StatusCode.PERMISSION_DENIED, error)
    assert server.refused == {reason: 1}
    assert sizes(read_blocks(request((1,)), timeout=DEADLINE_S)), "it goes on serving"


MALFORMED = {
    "garbage": (b"\xff" * 40, DEADLINE_S),
    "an offset behind the end": (request((1,), offset=LAYERS * BLOCK_BYTES + 1), DEADLINE_S),
    "no deadline": (request((1,)), None),
    "a deadline far away": (request((1,)), 1e6),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_request_that_makes_no_sense_is_refused_and_counted(
    server: BlockServer, read_blocks: ReadBlocks, case: str
) -> None:
    data, timeout = MALFORMED[case]
    assert refusal(read_blocks, data, timeout) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest")
    assert server.refused == {"malformed": 1}
    assert sizes(read_blocks(request((1,)), timeout=DEADLINE_S))


def test_a_huge_request_is_refused_before_it_is_read(read_blocks: ReadBlocks) -> None:
    assert refusal(read_blocks, bytes(2 << 20))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sizes(read_blocks(request((1,)), timeout=DEADLINE_S))


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff"]
)
def test_garbage_on_the_port_costs_that_connection_only(
    server: BlockServer, read_blocks: ReadBlocks, garbage: bytes
) -> None:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as enemy:
        enemy.sendall(garbage)
        with suppress(OSError):  # it may have hung up by now
            enemy.shutdown(socket.SHUT_WR)
        while received(enemy):
            pass
    assert sizes(read_blocks(request((1,)), timeout=DEADLINE_S))


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_it_listens_on_the_configured_interface_only(server: BlockServer) -> None:
    port = int(server.address.split(":")[1])
    socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=DEADLINE_S)


async def test_one_reader_too_many_is_sent_away_until_another_has_ended(
    server: BlockServer, read_blocks: ReadBlocks
) -> None:
    held = [read_blocks(request(EVERY), timeout=DEADLINE_S) for _ in range(LIMITS.most_streams)]
    for call in held:
        next(call)
    assert refusal(read_blocks, request((1,))) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Overloaded")
    assert server.refused == {"busy": 1}
    assert sizes(read_blocks(b"", timeout=DEADLINE_S)) == [block_server.PROBE_BYTES], "a probe is answered all the same"
    for call in held:
        call.cancel()
    await eventually(lambda: server.streams == 0)
    assert sizes(read_blocks(request((1,)), timeout=DEADLINE_S))


def test_whoever_is_sent_away_is_told_in_our_words_however_many_there_are(
    server: BlockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of gRPC's own refusal a reader cannot know that it is for load."""
    go_on = threading.Event()
    really = permit

    def held_up(data: bytes, rule: TicketRule, layout: Layout) -> ReadPermit:
        assert go_on.wait(DEADLINE_S)
        return really(data, rule, layout)

    monkeypatch.setattr("kv_transfer.block_server.permit", held_up)
    with ExitStack() as channels:
        calls = []
        for _ in range(8):  # each a reader of its own: one connection takes no more calls than there are threads
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
            channel = channels.enter_context(grpc.insecure_channel(server.address, options=options))
            stream: ReadBlocks = channel.unary_stream(f"/{SERVICE}/{METHOD}")
            calls += [stream(request(EVERY), timeout=DEADLINE_S) for _ in range(4)]
        go_on.set()
        told = Counter(first_answer(call) for call in calls)
        for call in calls:
            call.cancel()
    assert set(told) == {"", "Overloaded"}
    assert told["Overloaded"] >= 1


def first_answer(call: Any) -> str:
    """The class of the refusal; empty for a frame."""
    try:
        next(call)
    except grpc.RpcError:
        return str({item.key: item.value for item in call.trailing_metadata()}.get(ERROR_KEY))
    return ""


def test_large_frames_leave_room_for_fewer_readers(server: BlockServer, read_blocks: ReadBlocks) -> None:
    first = read_blocks(request(EVERY, frame_bytes=4 * LEAST_FRAME_BYTES), timeout=DEADLINE_S)
    next(first)  # all that may be in flight
    assert refusal(read_blocks, request((1,)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()


async def test_a_reader_that_goes_away_ends_its_stream_at_once(server: BlockServer, read_blocks: ReadBlocks) -> None:
    call = read_blocks(request(EVERY), timeout=DEADLINE_S)
    next(call)
    assert server.streams == 1
    call.cancel()
    await eventually(lambda: server.streams == 0)


async def test_the_deadline_of_a_reader_that_reads_no_more_ends_its_stream(
    server: BlockServer, read_blocks: ReadBlocks
) -> None:
    call = read_blocks(request(EVERY), timeout=1.0)
    next(call)
    assert server.streams == 1
    await eventually(lambda: server.streams == 0)
    call.cancel()


def test_a_slow_reader_holds_the_writer_back(
    server: BlockServer, read_blocks: ReadBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counting(offset: int, size: int, fill: object) -> bytes:
        made.append(offset)
        return bytes(size)

    monkeypatch.setattr(block_server, "encode", counting)
    slow = read_blocks(request(EVERY), timeout=DEADLINE_S)
    next(slow)
    held_back = len(list(read_blocks(request(EVERY), timeout=DEADLINE_S)))  # meanwhile another reads everything
    assert held_back == LAYERS * BLOCKS * BLOCK_BYTES // LEAST_FRAME_BYTES
    assert len(made) - held_back < held_back / 2
    slow.cancel()


def test_closing_ends_open_streams_and_may_be_repeated(server: BlockServer, read_blocks: ReadBlocks) -> None:
    call = read_blocks(request(EVERY), timeout=DEADLINE_S)
    next(call)
    server.close()
    server.close()
    with pytest.raises(grpc.RpcError):
        list(call)
