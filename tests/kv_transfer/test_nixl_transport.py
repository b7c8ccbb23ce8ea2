"""NIXL between two processes: bytes arrive where they belong, and a peer that dies never hangs a reader."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest

from cluster.errors import TransferFailed
from kv_transfer.mover import Deadlines, Mover, PullJob
from kv_transfer.nixl_transport import NixlPeer, NixlRead, NixlTransport
from kv_transfer.transport import Endpoint, Layout, ReadState, Region
from tests.kv_transfer.conftest import FINGERPRINT, Source

LAYERS, BLOCKS, BLOCK_BYTES = 3, 64, 4096
Cache = np.ndarray[Any, np.dtype[np.uint8]]

pytestmark = pytest.mark.timeout(60)


def layout_of(cache: Cache) -> Layout:
    """Layer first, as vLLM does on CPU: the layers share one storage."""
    base, layer = cache.ctypes.data, cache.strides[0]
    return Layout(tuple(Region(base + i * layer, cache.strides[1], BLOCK_BYTES, BLOCKS) for i in range(LAYERS)))


def pattern() -> Cache:
    cache = np.empty((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    cache[:] = (np.arange(LAYERS)[:, None] * BLOCKS + np.arange(BLOCKS)[None, :])[:, :, None] % 251
    return cache


def serve(pipe: Connection) -> None:
    """A writer: serves its peers until it is killed."""
    cache = pattern()
    transport = NixlTransport(layout_of(cache))
    pipe.send(transport.endpoint())
    while not pipe.poll(0.002):
        transport.progress()


@dataclass
class Writer:
    process: BaseProcess
    endpoint: Endpoint

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def start_writer() -> Iterator[Writer]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there,))
    process.start()
    writer = Writer(process, here.recv())
    yield writer
    writer.kill()


writer = pytest.fixture(start_writer, scope="module", name="writer")
mortal_writer = pytest.fixture(start_writer, name="mortal_writer")


@pytest.fixture
def reader() -> Iterator[tuple[NixlTransport, Cache]]:
    cache = np.zeros((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    transport = NixlTransport(layout_of(cache))
    yield transport, cache
    transport.close()


def finish(transport: NixlTransport, read: NixlRead, within_s: float = 10.0) -> ReadState:
    end = time.monotonic() + within_s
    while (state := transport.poll(read)) is ReadState.MOVING and time.monotonic() < end:
        time.sleep(0)
    return state


def read_all(transport: NixlTransport, peer: NixlPeer, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    read = transport.start(peer, source, target)
    assert finish(transport, read) is ReadState.DONE
    assert transport.cancel(read)


def test_blocks_of_every_layer_land_in_the_blocks_they_were_meant_for(
    reader: tuple[NixlTransport, Cache], writer: Writer
) -> None:
    transport, cache = reader
    peer = transport.connect(writer.endpoint)
    read_all(transport, peer, source=(7, 0, 63), target=(1, 2, 40))
    there = pattern()
    for source, target in ((7, 1), (0, 2), (63, 40)):
        assert np.array_equal(cache[:, target], there[:, source])
    untouched = np.delete(cache, [1, 2, 40], axis=1)
    assert not untouched.any(), "a byte landed outside the target blocks"


def test_a_writer_of_other_block_sizes_is_refused(reader: tuple[NixlTransport, Cache], writer: Writer) -> None:
    regions = tuple(
        Region(r.address, r.stride, r.block_bytes // 2, r.num_blocks) for r in writer.endpoint.layout.regions
    )
    with pytest.raises(TransferFailed, match="other sizes"):
        reader[0].connect(Endpoint(writer.endpoint.offers, Layout(regions)))


def test_metadata_that_is_garbage_is_refused(reader: tuple[NixlTransport, Cache], writer: Writer) -> None:
    with pytest.raises(TransferFailed, match="cannot connect"):
        reader[0].connect(Endpoint({"nixl": b"garbage"}, writer.endpoint.layout))


def test_a_peer_can_be_forgotten_and_connected_again(reader: tuple[NixlTransport, Cache], writer: Writer) -> None:
    transport, cache = reader
    for round_ in range(3):
        peer = transport.connect(writer.endpoint)
        read_all(transport, peer, (round_ + 10,), (round_,))
        transport.disconnect(peer)
    assert np.array_equal(cache[:, :3], pattern()[:, 10:13])


def test_a_peer_that_stalls_or_dies_in_the_middle_of_a_read_never_hangs_it(
    reader: tuple[NixlTransport, Cache], mortal_writer: Writer
) -> None:
    transport, _ = reader
    mortal_writer.signal(signal.SIGSTOP)  # the first read must wait for the peer to answer its connection
    peer = transport.connect(mortal_writer.endpoint)

    stalled = transport.start(peer, (1,), (1,))
    assert finish(transport, stalled, within_s=0.3) is ReadState.MOVING
    let_go(transport, stalled)

    cut_off = transport.start(peer, (1,), (1,))
    assert finish(transport, cut_off, within_s=0.1) is ReadState.MOVING
    mortal_writer.kill()
    assert finish(transport, cut_off) is ReadState.FAILED
    let_go(transport, cut_off)

    with pytest.raises(TransferFailed):
        transport.start(peer, (1,), (1,))
    transport.disconnect(peer)


def let_go(transport: NixlTransport, read: NixlRead) -> None:
    end = time.monotonic() + 5
    while not transport.cancel(read):
        assert time.monotonic() < end, "the read cannot be stopped"
        time.sleep(0.01)


def test_other_threads_go_on_while_bytes_move(reader: tuple[NixlTransport, Cache], writer: Writer) -> None:
    """The engine computes while blocks arrive: a transfer must not hold the interpreter."""
    transport, _ = reader
    peer = transport.connect(writer.endpoint)
    read_all(transport, peer, (0,), (0,))
    pauses, stop = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not stop.wait(0.0005):
            pauses.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticking = threading.Thread(target=tick)
    ticking.start()
    for _ in range(50):
        read_all(transport, peer, tuple(range(BLOCKS)), tuple(range(BLOCKS)))
    stop.set()
    ticking.join()
    assert max(pauses) < 0.25


async def test_the_mover_survives_a_source_whose_process_dies(mortal_writer: Writer) -> None:
    """The whole reader, with NIXL: the pull fails within its deadline and leaves nothing behind."""
    cache = np.zeros((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    transport = NixlTransport(layout_of(cache))
    source = Source(endpoint=mortal_writer.endpoint)
    mover = Mover(transport, FINGERPRINT, "decode-0/1", 0, Deadlines(1.0, 1.0))

    def job() -> PullJob:
        return PullJob("request", source.offer((4, 5, 6)), (4, 5, 6), (0, 1, 2))

    assert (await mover.pull(job())).outcome == "landed"
    assert np.array_equal(cache[:, :3], pattern()[:, 4:7])
    await asyncio.to_thread(mortal_writer.kill)
    async with asyncio.timeout(5):
        result = await mover.pull(job())
    assert result.outcome == "failed"
    await mover.close()
    assert source.stats().leases == 0
    source.server.close()
    transport.close()
