"""The bytes of blocks in a GPU's memory: as in the host's, on a real GPU, and beside what the engine computes there."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_memory import memory_of
from kv_transfer.block_server import BlockServer
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.transport import BlockRead, Endpoint, Layout, Region
from tests.benchmarks.block_writer import RULE, ticket_for
from tests.benchmarks.kv_caches import KvCache, llama_shape
from tests.kv_transfer.test_block_memory import Case, cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

_FRAME = 1 << 20


def on_gpu(case: Case) -> tuple[Layout, list[torch.Tensor]]:
    """The same storage, gaps included, and how it is described."""
    layers = [torch.from_numpy(raw.copy()).cuda() for raw in case.raw]
    torch.cuda.synchronize()
    rows = zip(layers, case.sizes, case.strides, strict=True)
    return Layout(tuple(Region(at.data_ptr(), stride, size, case.blocks) for at, size, stride in rows), "VRAM"), layers


@given(case=cases())
def test_gathered_bytes_are_those_of_the_blocks_in_the_order_asked(case: Case) -> None:
    layout, kept = on_gpu(case)
    blocks, into = memory_of(layout).open(case.ids), bytearray(case.length)
    blocks.gather(case.offset, memoryview(into))
    blocks.close()
    assert list(into) == [case.raw[layer][place] for layer, place in case.places]
    assert len(kept) == len(case.raw)


@given(case=cases(), data=st.data())
def test_scattered_bytes_land_in_their_blocks_and_nowhere_else(case: Case, data: st.DataObject) -> None:
    incoming = data.draw(st.binary(min_size=case.length, max_size=case.length))
    expected = [raw.copy() for raw in case.raw]
    for (layer, place), byte in zip(case.places, incoming, strict=True):
        expected[layer][place] = byte
    layout, layers = on_gpu(case)
    blocks = memory_of(layout).open(case.ids)
    blocks.scatter(case.offset, memoryview(incoming))
    blocks.close()
    for found, wanted in zip(layers, expected, strict=True):
        assert np.array_equal(found.cpu().numpy(), wanted)


@settings(max_examples=5)
@given(ids=st.permutations(range(16)))
def test_blocks_cross_from_one_gpu_cache_to_another_while_the_gpu_computes(ids: list[int]) -> None:
    """What is queued on the engine's stream neither delays the bytes past the end of the read nor is touched by it."""
    shape = replace(llama_shape(), blocks=16)
    writer, reader = KvCache(shape), KvCache(shape)
    writer.fill()
    reader.wipe()
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):  # a second of work that is queued when the read begins
        busy = (busy @ busy).tanh()
    asyncio.run(_read(writer, reader, tuple(ids), tuple(reversed(ids))))
    assert reader.holds(tuple(ids), tuple(reversed(ids)))
    assert bool(torch.isfinite(busy).all())


async def _read(writer: KvCache, reader: KvCache, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    limits = StreamLimits(_FRAME, 16 * _FRAME)
    server = BlockServer(writer.layout, RULE, limits, "127.0.0.1", "127.0.0.1")
    own = BlockServer(reader.layout, RULE, limits, "127.0.0.1", "127.0.0.1")
    transport = GrpcTransport(reader.layout, limits, own)
    peer = transport.connect(Endpoint({"grpc": server.address.encode()}, writer.layout))
    async with asyncio.timeout(60):
        await transport.read(peer, BlockRead(ticket_for(source), source, target))
    transport.disconnect(peer)
    transport.close()
    server.close()
