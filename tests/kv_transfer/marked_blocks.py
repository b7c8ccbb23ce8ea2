"""KV caches whose every byte says which filling of which block it belongs to: one that is stale, damaged or in a wrong
place shows.

Each time a block is filled it gets a new mark, unique among all writers; words of eight bytes count on from the mark.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kv_transfer.transport import Layout, Region

LAYERS, BLOCK_BYTES = 4, 4096
SIZE = LAYERS * BLOCK_BYTES  # of one block over all layers
_WORDS = BLOCK_BYTES // 8
_STEP = np.uint64(0x9E3779B97F4A7C15)

Words = np.ndarray[Any, np.dtype[np.uint64]]


class MarkedCache:
    """As vLLM lays blocks out on CPU: layer first, all in one storage."""

    def __init__(self, num_blocks: int) -> None:
        self.words: Words = np.zeros((LAYERS, num_blocks, _WORDS), np.uint64)
        base, layer, block = self.words.ctypes.data, self.words.strides[0], self.words.strides[1]
        self.layout = Layout(tuple(Region(base + i * layer, block, BLOCK_BYTES, num_blocks) for i in range(LAYERS)))

    def fill(self, block_ids: list[int], marks: list[int]) -> None:
        self.words[:, block_ids] = _words_of(marks)

    def wrong_blocks(self, block_ids: list[int], marks: list[int]) -> int:
        """How many of the blocks hold a byte that does not belong to their mark."""
        return int((self.words[:, block_ids] != _words_of(marks)).any(axis=(0, 2)).sum())


def _words_of(marks: list[int]) -> Words:
    first = np.asarray(marks, np.uint64)[None, :, None] * np.uint64(LAYERS * _WORDS)
    here = np.arange(LAYERS * _WORDS, dtype=np.uint64).reshape(LAYERS, 1, _WORDS)
    return (first + here) * _STEP
