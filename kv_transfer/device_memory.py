"""The blocks of one rank in a GPU's memory, by way of pinned staging buffers and a stream beside the engine's.

Owns the staging buffers and the order of copies. Not measured, and never run on a GPU yet: its bookkeeping is tested on
host tensors, `CudaSide` is not.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from cluster.errors import TransferFailed
from kv_transfer.block_frames import MOST_FRAME_BYTES
from kv_transfer.block_pieces import Piece, ReadPieces
from kv_transfer.transport import Layout, Region


class Side(Protocol):
    """Where copies run beside the engine's work, in the order in which they are given."""

    def staging(self, size: int) -> Any:
        """A tensor of `size` bytes in host memory that the GPU can reach."""
        ...

    def ids(self, block_ids: Any) -> Any:
        """As a tensor where the blocks are."""
        ...

    def stream(self) -> AbstractContextManager[Any]:
        """What torch is told inside runs there."""
        ...

    def mark(self) -> Any:
        """Its `synchronize` waits for all that was told so far."""
        ...


class DeviceMemory:
    """`layers`: a tensor of bytes a region, a row a block. Staging buffers are kept and used again."""

    def __init__(self, layout: Layout, layers: Sequence[Any], side: Side) -> None:
        self._layout = layout
        self._layers = layers
        self._side = side
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @classmethod
    def of_cuda(cls, layout: Layout) -> DeviceMemory:
        import torch

        device = torch.device("cuda", layout.device_id)
        layers = [torch.as_tensor(_CudaBlocks(region), device=device) for region in layout.regions]
        return cls(layout, layers, CudaSide(device))

    def open(self, block_ids: Sequence[int]) -> DeviceBytes:
        return DeviceBytes(ReadPieces(self._layout, block_ids), self._layers, self._side, self._idle)


class DeviceBytes:
    """Two staging buffers in turn: the copies of one frame run while the next one arrives."""

    def __init__(self, pieces: ReadPieces, layers: Sequence[Any], side: Side, idle: queue.SimpleQueue[Any]) -> None:
        self._pieces = pieces
        self._layers = layers
        self._side = side
        self._idle = idle
        self._stages = [self._stage(), self._stage()]
        self._under_way: list[Any] = [None, None]  # out of or into each of them
        self._turn = 0
        with _translated():
            self._ids = side.ids(pieces.ids)

    @property
    def size(self) -> int:
        return self._pieces.size

    def gather(self, offset: int, into: memoryview) -> None:
        stage = self._stages[0]
        with _translated():
            with self._side.stream():
                for at, piece in self._placed(offset, len(into)):
                    stage[at : at + piece.size].copy_(self._take(piece), non_blocking=True)
                done = self._side.mark()
            done.synchronize()
        np.frombuffer(into, np.uint8)[:] = stage.numpy()[: len(into)]

    def scatter(self, offset: int, data: memoryview) -> None:
        self._turn = 1 - self._turn
        stage = self._stages[self._turn]
        with _translated():
            self._settle(self._turn)
            stage.numpy()[: len(data)] = np.frombuffer(data, np.uint8)
            with self._side.stream():
                for at, piece in self._placed(offset, len(data)):
                    self._put(piece, stage[at : at + piece.size])
                self._under_way[self._turn] = self._side.mark()

    def close(self) -> None:
        with _translated():
            for turn in range(len(self._stages)):
                self._settle(turn)
        while self._stages:
            self._idle.put(self._stages.pop())

    def _take(self, piece: Piece) -> Any:
        layer, ids = self._layers[piece.layer], self._ids[piece.first : piece.first + piece.blocks]
        if piece.whole:
            return layer.index_select(0, ids).view(-1)
        return layer[int(self._pieces.ids[piece.first]), piece.skip : piece.skip + piece.size]

    def _put(self, piece: Piece, data: Any) -> None:
        layer, ids = self._layers[piece.layer], self._ids[piece.first : piece.first + piece.blocks]
        if piece.whole:
            rows = data.to(layer.device, non_blocking=True).view(piece.blocks, -1)
            layer.index_copy_(0, ids, rows)
        else:
            block = layer[int(self._pieces.ids[piece.first])]
            block[piece.skip : piece.skip + piece.size].copy_(data, non_blocking=True)

    def _placed(self, offset: int, length: int) -> Iterator[tuple[int, Piece]]:
        """Pieces, each with its place in the frame."""
        at = 0
        for piece in self._pieces.of(offset, length):
            yield at, piece
            at += piece.size

    def _settle(self, turn: int) -> None:
        copies, self._under_way[turn] = self._under_way[turn], None
        if copies is not None:
            copies.synchronize()

    def _stage(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            with _translated():
                return self._side.staging(MOST_FRAME_BYTES)


class CudaSide:
    """A CUDA stream of our own: copies neither wait for the engine's kernels nor make them wait."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def staging(self, size: int) -> Any:
        return self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)

    def ids(self, block_ids: Any) -> Any:
        with self.stream():
            return self._torch.from_numpy(block_ids).to(self._device)

    def stream(self) -> AbstractContextManager[Any]:
        stream: AbstractContextManager[Any] = self._torch.cuda.stream(self._stream)
        return stream

    def mark(self) -> Any:
        return self._stream.record_event()


class _CudaBlocks:
    """Memory that is not torch's, in the form in which torch takes it over without a copy."""

    def __init__(self, region: Region) -> None:
        self.__cuda_array_interface__ = {
            "shape": (region.num_blocks, region.block_bytes),
            "strides": (region.stride, 1),
            "typestr": "|u1",
            "data": (region.address, False),
            "version": 3,
        }


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's one error for whatever CUDA reports
        raise TransferFailed(f"blocks cannot be copied from or to the GPU: {error}") from error
