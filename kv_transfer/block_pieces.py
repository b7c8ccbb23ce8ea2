"""Which part of which blocks a range of a read is.

A read is linear: of the first layer all blocks in the order asked, then of the second, and so on. Pure arithmetic on a
layout; touches no memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import TransferFailed
from kv_transfer.transport import Layout

BlockIds = np.ndarray[Any, np.dtype[np.int64]]


class Piece(NamedTuple):
    """`blocks` blocks of `layer`, those from position `first` of the read on: all of their bytes if `whole`, or of a
    single one the `size` bytes behind the first `skip`."""

    layer: int
    first: int
    blocks: int
    skip: int
    size: int
    whole: bool


class ReadPieces:
    """`block_ids` of every layer of `layout`. `size`: bytes of the whole read. Raises `TransferFailed` for blocks that
    the layout does not have."""

    def __init__(self, layout: Layout, block_ids: Sequence[int]) -> None:
        self.ids: BlockIds = np.asarray(block_ids, np.int64)
        if len(self.ids) and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < layout.num_blocks:
            raise TransferFailed(f"a block asked for is not one of the {layout.num_blocks} that there are")
        self._block_sizes = layout.block_sizes
        self._layers = [0, *accumulate(len(self.ids) * size for size in layout.block_sizes)]
        self.size = self._layers[-1]

    def of(self, offset: int, length: int) -> Iterator[Piece]:
        """In the order of the read: for each layer at most a broken block, whole blocks, and a broken block."""
        end = offset + length
        assert 0 <= offset <= end <= self.size, f"{length} bytes at {offset} of a read of {self.size}"
        while offset < end:
            layer = bisect_right(self._layers, offset) - 1
            begin = self._layers[layer]
            stop = min(end, self._layers[layer + 1])
            yield from _pieces(layer, offset - begin, stop - begin, self._block_sizes[layer])
            offset = stop


def _pieces(layer: int, begin: int, end: int, block_bytes: int) -> Iterator[Piece]:
    """Of the bytes from `begin` to `end` of one layer's part of a read."""
    first, skip = divmod(begin, block_bytes)
    if skip:
        size = min(block_bytes - skip, end - begin)
        yield Piece(layer, first, 1, skip, size, False)
        first, begin = first + 1, begin + size
    count, rest = divmod(end - begin, block_bytes)
    if count:
        yield Piece(layer, first, count, 0, count * block_bytes, True)
    if rest:
        yield Piece(layer, first + count, 1, 0, rest, False)
