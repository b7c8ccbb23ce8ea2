"""Frames written by hand are those of protobuf, and what is not a good frame is refused with a reason."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.block_frames import FRAME_SLACK, LEAST_FRAME_BYTES, MOST_FRAME_BYTES, BadFrame, StreamLimits
from kv_transfer.block_frames import decode as decode_frame
from kv_transfer.block_frames import encode as encode_frame
from protos.baton.v1 import kv_pb2 as pb

OFFSETS = st.integers(0, (1 << 64) - 1) | st.sampled_from((0, 127, 128, 1 << 63))
MIB = 1 << 20


def encode(offset: int, data: bytes) -> bytes:
    def fill(memory: memoryview) -> None:
        memory[:] = data

    return encode_frame(offset, len(data), fill)


@given(OFFSETS, st.binary(max_size=300))
def test_protobuf_reads_what_is_written_here(offset: int, data: bytes) -> None:
    frame = pb.Frame.FromString(encode(offset, data))
    assert (frame.offset, frame.checksum, frame.data) == (offset, xxhash.xxh3_64_intdigest(data), data)


@given(OFFSETS, st.binary(max_size=300))
def test_what_protobuf_writes_is_read_here(offset: int, data: bytes) -> None:
    frame = pb.Frame(offset=offset, checksum=xxhash.xxh3_64_intdigest(data), data=data)
    read = decode_frame(frame.SerializeToString(), len(data))
    assert (read.offset, bytes(read.data)) == (offset, data)


@given(OFFSETS, st.binary(max_size=300))
def test_a_frame_survives_both_ways_without_a_copy(offset: int, data: bytes) -> None:
    message = encode(offset, data)
    assert len(message) <= len(data) + FRAME_SLACK
    read = decode_frame(message, len(data))
    assert (read.offset, bytes(read.data)) == (offset, data)
    assert read.data.obj is message


@given(st.binary(max_size=64))
def test_garbage_is_refused_and_never_another_error(message: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_frame(message, MIB)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_frame_with_one_flipped_bit_never_passes_as_another(data: bytes, draw: st.DataObject) -> None:
    message = bytearray(encode(5, data))
    bit = draw.draw(st.integers(0, 8 * len(message) - 1))
    message[bit // 8] ^= 1 << bit % 8
    try:
        read = decode_frame(bytes(message), MIB)
    except BadFrame:
        return
    assert bytes(read.data) == data, "damaged bytes passed; an offset is checked by its reader"


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_frame_that_was_cut_is_refused(data: bytes, draw: st.DataObject) -> None:
    message = encode(5, data)
    with pytest.raises(BadFrame):
        decode_frame(message[: draw.draw(st.integers(0, len(message) - 1))], MIB)


def test_more_data_than_agreed_are_refused() -> None:
    with pytest.raises(BadFrame, match="99 allowed"):
        decode_frame(encode(0, bytes(100)), 99)
    with pytest.raises(BadFrame, match="99 were agreed"):
        decode_frame(encode(0, bytes(1000)), 99)


@pytest.mark.parametrize(
    ("wanted", "in_flight", "given"),
    [
        (0, 64 * MIB, MIB),  # no wish: ours
        (1, 64 * MIB, LEAST_FRAME_BYTES),
        (2 * MIB, 64 * MIB, 2 * MIB),
        (1 << 31, 64 * MIB, MOST_FRAME_BYTES),
        (MIB, 2 * MIB, MIB // 2),  # a single stream keeps to what may be in flight
    ],
)
def test_the_size_of_a_frame_stays_within_its_limits(wanted: int, in_flight: int, given: int) -> None:
    assert StreamLimits(MIB, in_flight).frame(wanted) == given


@pytest.mark.parametrize(("in_flight", "streams"), [(64 * MIB, 16), (12 * MIB, 3), (MIB, 1)])
def test_as_many_streams_are_open_as_fit_into_what_may_be_in_flight(in_flight: int, streams: int) -> None:
    assert StreamLimits(MIB, in_flight).streams == streams
