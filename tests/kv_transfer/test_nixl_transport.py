"""NIXL between two processes: bytes arrive where they belong, nothing arrives once a read has ended, and a peer that
stalls or dies never hangs a reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import pytest

from cluster.errors import Overloaded, TransferFailed
from kv_transfer.connections import Link
from kv_transfer.mover import Mover
from kv_transfer.nixl_agent import NixlAgent, ReadState
from kv_transfer.nixl_transport import NixlPeer, NixlTransport
from kv_transfer.transport import BlockRead, Endpoint, Interrupted, Layout, Region
from kv_transfer.turns import read_in_turn
from tests.kv_transfer.conftest import READER, Source, job, rules
from tests.kv_transfer.nixl_peers import (
    BLOCK_BYTES,
    BLOCKS,
    LAYERS,
    Cache,
    Nursery,
    Writer,
    layout_of,
    pattern,
    started_writer,
)

Reading = tuple[NixlTransport, Cache]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def writer(nursery: Nursery) -> Iterator[Writer]:
    with started_writer(nursery) as made:
        yield made


@pytest.fixture(scope="module")
def other_writer(nursery: Nursery) -> Iterator[Writer]:
    """May be stopped, but must go on in the end."""
    with started_writer(nursery) as made:
        yield made


@pytest.fixture
def mortal_writer(nursery: Nursery) -> Iterator[Writer]:
    with started_writer(nursery) as made:
        yield made


@pytest.fixture
async def reader() -> Reading:
    return new_reader()


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


MADE: list[NixlTransport] = []


def new_reader() -> Reading:
    cache = np.zeros((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    MADE.append(NixlTransport(layout_of(cache), "lo"))
    return MADE[-1], cache


ALL = tuple(range(BLOCKS))


async def read(transport: NixlTransport, peer: NixlPeer, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    """As often as it is interrupted."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(Interrupted):
                return await transport.read(peer, BlockRead(b"", source, target))


async def test_blocks_of_every_layer_land_in_the_blocks_they_were_meant_for(reader: Reading, writer: Writer) -> None:
    transport, cache = reader
    peer = transport.connect(writer.endpoint)
    await transport.probe(peer)
    assert not cache.any(), "a probe touched a block"
    await read(transport, peer, source=(7, 0, 63), target=(1, 2, 40))
    there = pattern()
    for source, target in ((7, 1), (0, 2), (63, 40)):
        assert np.array_equal(cache[:, target], there[:, source])
    untouched = np.delete(cache, [1, 2, 40], axis=1)
    assert not untouched.any(), "a byte landed outside the target blocks"


async def test_a_writer_of_other_block_sizes_is_refused(reader: Reading, writer: Writer) -> None:
    regions = tuple(
        Region(r.address, r.stride, r.block_bytes // 2, r.num_blocks) for r in writer.endpoint.layout.regions
    )
    with pytest.raises(TransferFailed, match="other sizes"):
        reader[0].connect(Endpoint(writer.endpoint.offers, Layout(regions)))


@pytest.mark.parametrize("offer", [b"", b"garbage", b"nxl1" + bytes(24), b"nxl1" + bytes(200)])
async def test_an_offer_that_is_garbage_is_refused(reader: Reading, writer: Writer, offer: bytes) -> None:
    with pytest.raises(TransferFailed):
        reader[0].connect(Endpoint({"nixl": offer}, writer.endpoint.layout))
    peer = reader[0].connect(writer.endpoint)
    await read(reader[0], peer, (1,), (1,))


async def test_memory_that_the_peer_never_offered_is_not_read(reader: Reading, writer: Writer) -> None:
    regions = tuple(
        Region(r.address + (1 << 40), r.stride, r.block_bytes, r.num_blocks) for r in writer.endpoint.layout.regions
    )
    peer = reader[0].connect(Endpoint(writer.endpoint.offers, Layout(regions)))
    with pytest.raises(TransferFailed, match="NIXL cannot prepare a read"):
        await read(reader[0], peer, (1,), (1,))


async def test_a_probe_that_brings_other_bytes_than_were_offered_fails(reader: Reading, writer: Writer) -> None:
    offer = bytearray(writer.endpoint.offers["nixl"])
    offer[12] ^= 1  # of the token
    peer = reader[0].connect(Endpoint({"nixl": bytes(offer)}, writer.endpoint.layout))
    with pytest.raises(TransferFailed, match="other bytes"):
        await reader[0].probe(peer)


async def test_a_peer_can_be_forgotten_and_connected_again(reader: Reading, writer: Writer) -> None:
    transport, cache = reader
    for round_ in range(3):
        peer, same = transport.connect(writer.endpoint), transport.connect(writer.endpoint)
        transport.disconnect(same)
        await read(transport, peer, (round_ + 10,), (round_,))
        transport.disconnect(peer)
    assert np.array_equal(cache[:, :3], pattern()[:, 10:13])


async def test_only_the_configured_interface_is_listened_on(writer: Writer) -> None:
    assert {host for host, _ in writer.listening} == {"127.0.0.1"}


@pytest.mark.parametrize("garbage", [bytes(8), bytes(100_000), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000])
async def test_garbage_on_the_port_leaves_the_writer_at_work(reader: Reading, writer: Writer, garbage: bytes) -> None:
    for address in writer.listening:
        with socket.create_connection(address, 5) as connection, contextlib.suppress(OSError):
            connection.sendall(garbage)
            connection.settimeout(0.1)
            connection.recv(1)  # gives it time to be seen, and perhaps hung up on
    peer = reader[0].connect(writer.endpoint)
    await reader[0].probe(peer)
    await read(reader[0], peer, (1,), (1,))


async def test_a_stalled_peer_fails_a_probe_at_its_deadline_and_answers_the_next_one(other_writer: Writer) -> None:
    transport, _ = new_reader()
    other_writer.signal(signal.SIGSTOP)  # the first contact must wait for the peer
    peer = transport.connect(other_writer.endpoint)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await transport.probe(peer)
    transport.disconnect(peer)
    other_writer.signal(signal.SIGCONT)
    peer = transport.connect(other_writer.endpoint)
    await transport.probe(peer)
    await read(transport, peer, (1,), (1,))
    assert "unsettled=0" in repr(transport)


async def test_a_peer_that_dies_fails_probes_and_reads_at_once(mortal_writer: Writer) -> None:
    transport, _ = new_reader()
    mortal_writer.signal(signal.SIGSTOP)
    peer = transport.connect(mortal_writer.endpoint)
    reading = asyncio.create_task(read(transport, peer, (1,), (1,)))
    done, _ = await asyncio.wait({reading}, timeout=0.1)
    assert not done
    mortal_writer.kill()
    async with asyncio.timeout(5):
        with pytest.raises(TransferFailed):
            await reading
        with pytest.raises(TransferFailed):
            await transport.probe(peer)
    transport.disconnect(peer)


# Makes UCX ask the peer to send, as over a network whose card cannot fetch: then bytes may come long after they were
# asked for, and only such a path shows whether a read has really ended.
EMULATED = {"UCX_TLS": "tcp", "UCX_PROTO_EMULATION_ENABLE": "y"}


def stop_in_mid_read(pipe: Connection, endpoint: Endpoint, environment: dict[str, str]) -> None:
    """Reads from a peer that is stopped and then goes on; tells how many bytes came before the read's end and after."""
    os.environ |= environment

    async def run() -> tuple[int, int]:
        transport, cache = new_reader()
        peer = transport.connect(endpoint)
        await read(transport, peer, (1,), (1,))
        cache[:] = 0
        pipe.send("connected")
        pipe.recv()
        reading = asyncio.create_task(read(transport, peer, ALL, ALL))
        await asyncio.wait({reading}, timeout=0.1)
        for _ in range(3):
            reading.cancel()
            await asyncio.wait({reading}, timeout=0.02)
        await asyncio.wait({reading})
        before = int(cache.sum())
        cache[:] = 0
        pipe.send("ended")
        pipe.recv()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            transport._current().agent.progress()  # what is still under way arrives only with progress
            await asyncio.sleep(0.001)
        return before, int(cache.sum())

    pipe.send(asyncio.run(run()))


def test_nothing_arrives_any_more_once_a_cancelled_read_has_ended(nursery: Nursery, mortal_writer: Writer) -> None:
    """NIXL itself lets go of such a read at once, and its bytes arrive later all the same."""
    pipe = nursery.start(stop_in_mid_read, mortal_writer.endpoint, EMULATED)
    assert pipe.recv() == "connected"
    mortal_writer.signal(signal.SIGSTOP)
    pipe.send("read")
    assert pipe.recv() == "ended"
    mortal_writer.signal(signal.SIGCONT)
    pipe.send("look")
    assert pipe.recv() == (0, 0)


def test_a_path_over_which_a_peer_would_have_to_send_is_not_taken(nursery: Nursery, writer: Writer) -> None:
    """UCX aborts a writer whose reader goes away in the middle of such a read; there is another transport for that."""
    assert "NIXL cannot read" in nursery.start(tell_why_probe_fails, writer.endpoint, {"UCX_TLS": "tcp"}).recv()


def tell_why_probe_fails(pipe: Connection, endpoint: Endpoint, environment: dict[str, str]) -> None:
    os.environ |= environment

    async def run() -> str:
        transport, _ = new_reader()
        try:
            await transport.probe(transport.connect(endpoint))
        except TransferFailed as error:
            return str(error)
        return ""

    pipe.send(asyncio.run(run()))


async def test_a_read_that_cannot_be_stopped_costs_other_peers_no_more_than_a_new_beginning(
    reader: Reading, writer: Writer, other_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, cache = reader
    good, bad = transport.connect(writer.endpoint), transport.connect(other_writer.endpoint)
    agent = transport._current().agent
    really, done = agent.poll, threading.Event()

    def late(read: int) -> ReadState:
        return really(read) if done.is_set() else ReadState.MOVING

    monkeypatch.setattr(agent, "poll", late)
    other_writer.signal(signal.SIGSTOP)
    reads = [asyncio.create_task(read(transport, peer, (5,), (target,))) for peer, target in ((good, 1), (bad, 2))]
    await asyncio.wait(reads, timeout=0.1)
    reads[1].cancel()
    await asyncio.wait({reads[1]})
    assert agent.closed
    await reads[0]
    assert np.array_equal(cache[:, 1], pattern()[:, 5])
    other_writer.signal(signal.SIGCONT)
    await read(transport, bad, (6,), (3,))
    assert np.array_equal(cache[:, 3], pattern()[:, 6])


async def test_no_more_reads_run_at_once_than_may(writer: Writer) -> None:
    cache = np.zeros((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    MADE.append(NixlTransport(layout_of(cache), "lo", reads_at_once=2))
    transport = MADE[-1]
    link = Link(transport, transport.connect(writer.endpoint))
    async with transport.turn(), transport.turn():
        with pytest.raises(Overloaded, match="too many other reads"):
            await read_in_turn(link, BlockRead(b"", (5,), (1,)), 0.1, lambda: None, random.random)
        assert not cache.any()
    await read_in_turn(link, BlockRead(b"", (5,), (1,)), 5.0, lambda: None, random.random)
    assert np.array_equal(cache[:, 1], pattern()[:, 5])


async def test_other_threads_go_on_while_bytes_move(reader: Reading, writer: Writer) -> None:
    """The engine computes while blocks arrive: a transfer must not hold the interpreter."""
    transport, _ = reader
    peer = transport.connect(writer.endpoint)
    await read(transport, peer, (0,), (0,))
    pauses, stop = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not stop.wait(0.0005):
            pauses.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticking = threading.Thread(target=tick)
    ticking.start()
    for _ in range(50):
        await read(transport, peer, ALL, ALL)
    stop.set()
    ticking.join()
    assert max(pauses) < 0.25


async def test_the_mover_survives_a_source_whose_process_dies(mortal_writer: Writer) -> None:
    """The whole reader, with NIXL: the pull fails within its deadline and leaves nothing behind."""
    transport, cache = new_reader()
    source = Source(endpoint=mortal_writer.endpoint)
    ladder = rules(probe_s=1.0, read_s=1.0)
    mover = Mover([transport], READER, replace(ladder, rungs={"nixl": ladder.rungs["fast"]}))
    assert (await mover.pull(job(source.offer((4, 5, 6))))).outcome == "landed"
    assert np.array_equal(cache[:, 50:53], pattern()[:, 4:7])
    await asyncio.to_thread(mortal_writer.kill)
    async with asyncio.timeout(5):
        result = await mover.pull(job(source.offer((4, 5, 6))))
    assert (result.transport, result.outcome) == ("nixl", "failed")
    await mover.close()
    mover.check_idle()
    assert source.stats().leases == 0
    source.close()


async def test_a_read_that_the_late_one_of_another_peer_interrupts_lands_all_the_same(
    writer: Writer, other_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins anew 2.2 s into its 6 s, and then takes four."""
    transport, cache = new_reader()
    ladder = rules(read_s=6.0)
    mover = Mover([transport], READER, replace(ladder, rungs={"nixl": ladder.rungs["fast"]}))
    good, bad = Source(endpoint=writer.endpoint), Source(endpoint=other_writer.endpoint)
    for source in (good, bad):
        assert (await mover.pull(job(source.offer()))).outcome == "landed"
    agent = transport._current().agent
    monkeypatch.setattr(agent, "start", lambda read: ReadState.MOVING)
    monkeypatch.setattr(agent, "poll", lambda read: ReadState.MOVING)
    monkeypatch.setattr("kv_transfer.nixl_transport.NixlAgent", SlowAgent)
    late = asyncio.create_task(mover.pull(job(bad.offer())))
    await asyncio.sleep(4.0)
    cache[:] = 0
    result = await mover.pull(job(good.offer((4, 5, 6))))
    assert (await late).outcome == "failed"
    assert (result.outcome, result.reason) == ("landed", "")
    assert np.array_equal(cache[:, 50:53], pattern()[:, 4:7])
    await mover.close()
    for source in (good, bad):
        source.close()


class SlowAgent(NixlAgent):
    """Each of its reads takes four seconds."""

    def start(self, read: int) -> ReadState:
        self.until = time.monotonic() + 4.0
        super().start(read)
        return ReadState.MOVING

    def poll(self, read: int) -> ReadState:
        return super().poll(read) if time.monotonic() > self.until else ReadState.MOVING
