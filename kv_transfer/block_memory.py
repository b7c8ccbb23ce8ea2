"""The blocks of one rank as bytes: out of the memory that a layout describes and into it, without a copy in between.

Owns the views over raw addresses in host memory; what lies on a GPU is `device_memory`'s. Knows nothing of frames,
tickets or peers. Whole blocks move in one call of numpy, which lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from cluster.errors import ConfigError
from kv_transfer.block_pieces import Piece, ReadPieces
from kv_transfer.transport import Layout, Region

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class BlockBytes(Protocol):
    """Some blocks in the order of a read. One thread at a time."""

    @property
    def size(self) -> int: ...

    def gather(self, offset: int, into: memoryview) -> None:
        """Fills `into` with the bytes from `offset` on."""
        ...

    def scatter(self, offset: int, data: memoryview) -> None:
        """Puts `data` where the range from `offset` on lies. It may still be on its way until `close`."""
        ...

    def close(self) -> None:
        """Returns once nothing reads or writes the blocks any more. May raise `TransferFailed`: then what was scattered
        must not be used."""
        ...


class BlockMemory(Protocol):
    """The memory stays where it is for as long as anyone reads or writes it. May be shared by threads."""

    def open(self, block_ids: Sequence[int]) -> BlockBytes:
        """Raises `TransferFailed` for blocks that are not there."""
        ...


def memory_of(layout: Layout) -> BlockMemory:
    """Raises `ConfigError` for memory that is neither DRAM nor VRAM."""
    if layout.memory == "DRAM":
        return HostMemory(layout)
    if layout.memory == "VRAM":
        from kv_transfer.device_memory import DeviceMemory

        return DeviceMemory.of_cuda(layout)
    raise ConfigError(f"KV blocks lie in {layout.memory!r}; the gRPC transport reads and writes DRAM and VRAM")


class HostMemory:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._layers = [HostLayer(region) for region in layout.regions]

    def open(self, block_ids: Sequence[int]) -> HostBytes:
        return HostBytes(ReadPieces(self._layout, block_ids), self._layers)


class HostBytes:
    def __init__(self, pieces: ReadPieces, layers: list[HostLayer]) -> None:
        self._pieces = pieces
        self._layers = layers

    @property
    def size(self) -> int:
        return self._pieces.size

    def gather(self, offset: int, into: memoryview) -> None:
        target: Bytes = np.frombuffer(into, np.uint8)
        at = 0
        for piece in self._pieces.of(offset, len(into)):
            ids = self._pieces.ids[piece.first : piece.first + piece.blocks]
            self._layers[piece.layer].take(piece, ids, target[at : at + piece.size])
            at += piece.size

    def scatter(self, offset: int, data: memoryview) -> None:
        source: Bytes = np.frombuffer(data, np.uint8)
        at = 0
        for piece in self._pieces.of(offset, len(data)):
            ids = self._pieces.ids[piece.first : piece.first + piece.blocks]
            self._layers[piece.layer].put(piece, ids, source[at : at + piece.size])
            at += piece.size

    def close(self) -> None: ...


class HostLayer:
    """One region, as a row of bytes for each block."""

    def __init__(self, region: Region) -> None:
        raw = memoryview((ctypes.c_ubyte * region.size).from_address(region.address)).cast("B")
        self._blocks: Bytes = np.ndarray(
            (region.num_blocks, region.block_bytes), np.uint8, raw, strides=(region.stride, 1)
        )
        # numpy takes rows without a copy in between only where rows touch; so what lies between blocks is rows, too.
        self._rows_a_block, between = divmod(region.stride, region.block_bytes)
        self._rows: Bytes | None = None
        if not between:
            self._rows = np.ndarray((region.size // region.block_bytes, region.block_bytes), np.uint8, raw)

    def take(self, piece: Piece, ids: np.ndarray[Any, np.dtype[np.int64]], into: Bytes) -> None:
        if not piece.whole:
            into[:] = self._blocks[ids[0], piece.skip : piece.skip + piece.size]
        elif self._rows is None:
            into.reshape(piece.blocks, -1)[:] = self._blocks[ids]
        else:
            rows, target = ids * self._rows_a_block, into.reshape(piece.blocks, -1)
            np.take(self._rows, rows, axis=0, out=target, mode="clip")  # other modes make a copy first

    def put(self, piece: Piece, ids: np.ndarray[Any, np.dtype[np.int64]], data: Bytes) -> None:
        if piece.whole:
            self._blocks[ids] = data.reshape(piece.blocks, -1)
        else:
            self._blocks[ids[0], piece.skip : piece.skip + piece.size] = data
