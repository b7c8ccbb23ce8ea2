"""Blocks as bytes: every byte of a read comes from, and goes to, the block it was meant for, whatever the layout."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError, TransferFailed
from kv_transfer.block_memory import BlockMemory, HostMemory, memory_of
from kv_transfer.device_memory import DeviceMemory
from kv_transfer.transport import Layout, Region
from tests.kv_transfer.block_caches import Cache


@dataclass
class Inline:
    """A GPU's side that is the host: what it is told is done at once. Counts what was waited for."""

    staged: int = 0
    waited: int = 0

    def staging(self, size: int) -> torch.Tensor:
        self.staged += 1
        return torch.empty(1 << 16, dtype=torch.uint8)

    def ids(self, block_ids: Any) -> torch.Tensor:
        return torch.from_numpy(block_ids)

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def mark(self) -> Inline:
        return self

    def synchronize(self) -> None:
        self.waited += 1


@dataclass
class Case:
    """`raw`: the storage of each layer, gaps between blocks included. The range may be of any bytes of the read."""

    raw: list[Cache]
    sizes: list[int]
    strides: list[int]
    blocks: int
    ids: list[int]
    offset: int
    length: int

    @property
    def layout(self) -> Layout:
        rows = zip(self.raw, self.sizes, self.strides, strict=True)
        return Layout(tuple(Region(raw.ctypes.data, stride, size, self.blocks) for raw, size, stride in rows))

    @property
    def places(self) -> list[tuple[int, int]]:
        """Layer and place of each byte of the range, found the slow way."""
        every = [
            (layer, block * stride + byte)
            for layer, (size, stride) in enumerate(zip(self.sizes, self.strides, strict=True))
            for block in self.ids
            for byte in range(size)
        ]
        return every[self.offset : self.offset + self.length]

    def host(self) -> BlockMemory:
        return HostMemory(self.layout)

    def device(self) -> BlockMemory:
        layers = [
            torch.as_strided(torch.from_numpy(raw), (self.blocks, size), (stride, 1))
            for raw, size, stride in zip(self.raw, self.sizes, self.strides, strict=True)
        ]
        return DeviceMemory(self.layout, layers, Inline())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    blocks = draw(st.integers(1, 9))
    sizes = draw(st.lists(st.integers(1, 17), min_size=1, max_size=3))
    gaps = st.sampled_from(("none", "as large as blocks", "odd"))
    strides = [{"none": size, "as large as blocks": 3 * size, "odd": size + 5}[draw(gaps)] for size in sizes]
    random = np.random.default_rng(draw(st.integers(0, 9)))
    raw = [
        random.integers(0, 256, stride * (blocks - 1) + size, np.uint8)
        for size, stride in zip(sizes, strides, strict=True)
    ]
    ids = draw(st.lists(st.integers(0, blocks - 1), min_size=1, max_size=blocks, unique=True))
    offset = draw(st.integers(0, sum(sizes) * len(ids) - 1))
    length = draw(st.integers(1, sum(sizes) * len(ids) - offset))
    return Case(raw, sizes, strides, blocks, ids, offset, length)


MEMORIES = pytest.mark.parametrize("memory", [Case.host, Case.device])


@MEMORIES
@given(case=cases())
def test_gathered_bytes_are_those_of_the_blocks_in_the_order_asked(memory: Any, case: Case) -> None:
    blocks = memory(case).open(case.ids)
    assert blocks.size == sum(case.sizes) * len(case.ids)
    into = bytearray(case.length)
    blocks.gather(case.offset, memoryview(into))
    blocks.close()
    assert list(into) == [case.raw[layer][place] for layer, place in case.places]


@MEMORIES
@given(case=cases(), data=st.data())
def test_scattered_bytes_land_in_their_blocks_and_nowhere_else(memory: Any, case: Case, data: st.DataObject) -> None:
    incoming = data.draw(st.binary(min_size=case.length, max_size=case.length))
    expected = [raw.copy() for raw in case.raw]
    for (layer, place), byte in zip(case.places, incoming, strict=True):
        expected[layer][place] = byte
    blocks = memory(case).open(case.ids)
    blocks.scatter(case.offset, memoryview(incoming))
    blocks.close()
    for raw, wanted in zip(case.raw, expected, strict=True):
        assert np.array_equal(raw, wanted)


@pytest.mark.parametrize("ids", [(4,), (-1,), (0, 1 << 40)])
def test_blocks_that_are_not_there_are_refused(ids: tuple[int, ...]) -> None:
    cache = np.zeros((4, 8), np.uint8)
    with pytest.raises(TransferFailed, match="one of the 4"):
        HostMemory(Layout((Region(cache.ctypes.data, 8, 8, 4),))).open(ids)


def test_memory_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="TAPE"):
        memory_of(Layout((), "TAPE"))


def test_a_gpu_copies_one_frame_while_the_next_one_arrives_and_settles_at_the_end() -> None:
    layer, side = torch.zeros((4, 8), dtype=torch.uint8), Inline()
    memory = DeviceMemory(Layout((Region(0, 8, 8, 4),)), [layer], side)
    blocks = memory.open((0, 1, 2))
    waited = []
    for offset in (0, 8, 16):
        blocks.scatter(offset, memoryview(bytes(8)))
        waited.append(side.waited)
    assert waited == [0, 0, 1], "a staging buffer is written again only when its copies are done"
    blocks.close()
    assert side.waited == 3
    memory.open((3,)).close()
    assert side.staged == 2, "staging buffers are used again"


def test_an_error_of_the_gpu_is_ours() -> None:
    class Broken(Inline):
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    layer = torch.zeros((4, 8), dtype=torch.uint8)
    blocks = DeviceMemory(Layout((Region(0, 8, 8, 4),)), [layer], Broken()).open((0,))
    with pytest.raises(TransferFailed, match="illegal memory access"):
        blocks.gather(0, memoryview(bytearray(8)))
