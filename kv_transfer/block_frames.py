"""The frames of KvBlocks on the wire, and how many may be under way.

The same bytes as `Frame` of kv.proto, written by hand: protobuf would copy every payload once more on either side. Owns
the sizes that both ends hold to; knows nothing of blocks or of gRPC.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from cluster.errors import TransferFailed

LEAST_FRAME_BYTES, MOST_FRAME_BYTES = 256 << 10, 4 << 20
# What a frame can be longer than its data: three tags, two varints, a checksum.
FRAME_SLACK = 64
# Of one stream, at either end: two that gRPC holds, one on its way to or from there, one that is made or taken apart.
FRAMES_A_STREAM = 4

_OFFSET, _CHECKSUM, _DATA = b"\x08", b"\x11", b"\x1a"  # tags: field number and wire type
_FIXED64 = struct.Struct("<Q")
_LONGEST_VARINT = 10
_MOST_VARINT = (1 << 64) - 1

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes, _new_bytes.restype = (ctypes.c_char_p, ctypes.c_ssize_t), ctypes.py_object
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes, _address_of.restype = (ctypes.py_object,), ctypes.c_void_p


class BadFrame(TransferFailed):
    """What arrived is not the frame that was to come."""


class Frame(NamedTuple):
    """`offset`: of the first byte of `data` in the whole read."""

    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bytes. `frame_bytes`: of a frame's data, as wanted. `in_flight_bytes`: of all frames under way at one end.
    `most_streams`: at once, however small their frames are."""

    frame_bytes: int
    in_flight_bytes: int
    most_streams: int = 16

    def frame(self, wanted: int = 0) -> int:
        """The size of a frame for a reader that wants `wanted`; 0 leaves it to us."""
        fits = max(LEAST_FRAME_BYTES, self.in_flight_bytes // FRAMES_A_STREAM)
        return min(max(wanted or self.frame_bytes, LEAST_FRAME_BYTES), MOST_FRAME_BYTES, fits)

    @property
    def streams(self) -> int:
        """How many streams with frames of our own size may be open."""
        return max(1, min(self.most_streams, self.in_flight_bytes // (FRAMES_A_STREAM * self.frame())))


def encode(offset: int, size: int, fill: Callable[[memoryview], None]) -> bytes:
    """The frame of `size` bytes from `offset` on, which `fill` writes to where they are sent from."""
    before, after = _OFFSET + _varint(offset) + _CHECKSUM, _DATA + _varint(size)
    data_at = len(before) + _FIXED64.size + len(after)
    message, memory = _unwritten(data_at + size)
    fill(memory[data_at:])
    checksum = xxhash.xxh3_64_intdigest(memory[data_at:])
    memory[:data_at] = before + _FIXED64.pack(checksum) + after
    return message


def decode(message: bytes, most_bytes: int) -> Frame:
    """Reads a frame of at most `most_bytes` of data, without a copy of them. Raises `BadFrame`: not a frame, too large,
    or data that are not those of its checksum."""
    if len(message) > most_bytes + FRAME_SLACK:
        raise BadFrame(f"a frame of {len(message)} bytes; {most_bytes} were agreed")
    offset = checksum = size = at = 0
    # As every protobuf writer writes it: fields in order, those that are zero left out, nothing behind the data.
    if message.startswith(_OFFSET, at):
        offset, at = _read_varint(message, at + 1)
    if message.startswith(_CHECKSUM, at):
        checksum, at = _read_fixed64(message, at + 1)
    if message.startswith(_DATA, at):
        size, at = _read_varint(message, at + 1)
    data = memoryview(message)[at:]
    if len(data) != size or size > most_bytes:
        raise BadFrame(f"not a frame: {len(data)} bytes of data where {size} are announced and {most_bytes} allowed")
    if xxhash.xxh3_64_intdigest(data) != checksum:
        raise BadFrame(f"the {size} bytes at {offset} were damaged on their way: their checksum differs")
    return Frame(offset, data)


def _unwritten(size: int) -> tuple[bytes, memoryview]:
    """A bytes object that nobody else has seen yet, and the memory behind it: the interpreter's own way to make a large
    one without a copy. The view must not outlive the object or its first use."""
    message: bytes = _new_bytes(None, size)
    return message, memoryview((ctypes.c_ubyte * size).from_address(_address_of(message))).cast("B")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The value, and where it ends."""
    value = 0
    for index, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80 and value <= _MOST_VARINT:
            return value, at + index + 1
    raise BadFrame("not a frame: a number in its head has no end")


def _read_fixed64(message: bytes, at: int) -> tuple[int, int]:
    if len(message) < at + _FIXED64.size:
        raise BadFrame("not a frame: it ends within its head")
    value: int = _FIXED64.unpack_from(message, at)[0]
    return value, at + _FIXED64.size
