"""The NIXL transport: one-sided READs of a peer's memory, over what UCX finds (shared memory, RDMA, NVLink).

One agent serves peers, another one reads. NIXL cannot stop a read, so one that does not come to its end costs the
reading agent: it is closed, which interrupts all its reads, and those of other peers begin anew with the next agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import TransferFailed
from kv_transfer.nixl_agent import NixlAgent, ReadState, Spans, configure_network
from kv_transfer.transport import BlockRead, Endpoint, Interrupted, Layout
from kv_transfer.unbroken import to_its_end

_log = logging.getLogger(__name__)

# A read over shared memory moves bytes only while we poll, so we poll without pause for as long as such a read may
# take; a network card moves them by itself, so after that we pause.
_BUSY_BYTES_PER_S = 1e9
_BUSY_S = 0.002
_PAUSE_S = 0.001
# How long a read that nobody waits for any more may take to come to its end by itself.
_QUIET_S = 0.2

# What a peer offers: a mark, where its token lies and what it is; the agent's metadata follow.
_OFFER = struct.Struct(">4sQ16s")
_MARK = b"nxl1"
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class NixlPeer:
    """`token` are the bytes at `token_address` in the peer's memory."""

    metadata: bytes
    token_address: int
    token: bytes
    layout: Layout


class NixlTransport:
    """Reads into, and serves reads from, the memory that `layout` describes; it must stay where it is until `close`.
    `net_device`: the only network interface to use, for all agents of this process; None leaves that to UCX.
    `reads_at_once`: they share the way the bytes come, and one that is late costs all others."""

    name = "nixl"

    def __init__(self, layout: Layout, net_device: str | None = None, reads_at_once: int = 4) -> None:
        configure_network(net_device)
        self._layout = layout
        self._turns = asyncio.Semaphore(reads_at_once)
        self._token = np.frombuffer(os.urandom(_TOKEN_BYTES), np.uint8).copy()
        self._server = NixlAgent()
        self._server.register(_all_blocks(layout), layout.memory)
        self._server.register(_bytes_of(self._token), "DRAM")
        self._reader: _Reader | None = _Reader(layout)
        self._closed = False
        self._peers: Counter[bytes] = Counter()

    def __repr__(self) -> str:
        return f"<NixlTransport peers={self._peers.total()} reader={self._reader}>"

    def offer(self) -> bytes:
        head = _OFFER.pack(_MARK, self._token.ctypes.data, self._token.tobytes())
        return head + self._server.metadata()

    def connect(self, endpoint: Endpoint) -> NixlPeer:
        if endpoint.layout.block_sizes != self._layout.block_sizes:
            raise TransferFailed("the peer's blocks have other sizes than ours")
        peer = _peer_of(endpoint.offers.get(self.name, b""), endpoint.layout)
        self._current().name_of(peer)
        self._peers[peer.metadata] += 1
        return peer

    async def probe(self, peer: NixlPeer) -> None:
        if (token := await self._read_token(peer)) is None:
            raise Interrupted("a probe was interrupted: the read of another peer could not be stopped")
        if token != peer.token:
            raise TransferFailed("NIXL read other bytes than the peer offered: it does not reach the peer's memory")

    def turn(self) -> asyncio.Semaphore:
        return self._turns

    async def read(self, peer: NixlPeer, read: BlockRead) -> None:
        if not await self._attempt(peer, read):
            raise Interrupted("a read was interrupted: one of another peer could not be stopped")

    def disconnect(self, peer: NixlPeer) -> None:
        self._peers[peer.metadata] -= 1
        if self._peers[peer.metadata] > 0:
            return
        del self._peers[peer.metadata]
        if self._reader is not None:
            self._reader.forget(peer)

    def progress(self) -> None:
        self._server.progress()

    def close(self) -> None:
        reader, self._reader, self._closed = self._reader, None, True
        for agent in [self._server, *([reader.agent] if reader else [])]:
            if not agent.close():
                _log.error("a NIXL agent is still in use after its end")

    def _current(self) -> _Reader:
        if self._closed:
            raise TransferFailed("this engine's transports are closed")
        if self._reader is None:
            self._reader = _Reader(self._layout)
        return self._reader

    async def _read_token(self, peer: NixlPeer) -> bytes | None:
        """None: the agent was closed under way."""
        reader = self._current()
        landing = _Landing(reader, peer)
        try:
            state = reader.agent.start(landing.read)
            landed = await _landed(reader.agent, landing.read, state, _TOKEN_BYTES)
        finally:
            reader.settle(landing)
        return landing.content if landed else None

    async def _attempt(self, peer: NixlPeer, read: BlockRead) -> bool:
        """False: the agent was closed under way, and nothing can be written by this attempt any more."""
        reader = self._current()
        source = _blocks(peer.layout, read.source), peer.layout.memory
        target = _blocks(self._layout, read.target), self._layout.memory
        moving = reader.agent.prepare(reader.name_of(peer), source, target)
        try:
            state = reader.agent.start(moving)
            landed = await _landed(reader.agent, moving, state, len(read.target) * self._layout.block_bytes)
        except BaseException:
            await to_its_end(self._quieten(reader, moving))
            raise
        if landed:
            reader.agent.release(moving)
        else:
            await to_its_end(self._give_up(reader))
        return landed

    async def _quieten(self, reader: _Reader, moving: int) -> None:
        """Returns once the read can write nothing any more."""
        give_up = asyncio.get_running_loop().time() + _QUIET_S
        while not reader.agent.closed:
            state = _poll(reader.agent, moving)
            if state is ReadState.DONE:
                reader.agent.release(moving)
                return
            # After an error of one part, others may be under way, and nothing tells when they end.
            if state is ReadState.FAILED or asyncio.get_running_loop().time() > give_up:
                break
            await asyncio.sleep(_PAUSE_S)
        await self._give_up(reader)

    async def _give_up(self, reader: _Reader) -> None:
        if self._reader is reader:
            self._reader = None
        told = False
        # No deadline: as long as bytes may arrive, the target blocks must not become anyone else's.
        while not reader.agent.close():
            if not told:
                _log.error("NIXL's reads cannot be stopped yet; their blocks are kept until they are")
                told = True
            await asyncio.sleep(_QUIET_S)


class _Reader:
    """An agent that reads, the peers it knows, and probes that have not come to their end."""

    def __init__(self, layout: Layout) -> None:
        self.agent = NixlAgent()
        self.agent.register(_all_blocks(layout), layout.memory)
        self._names: dict[bytes, str] = {}
        self._unsettled: list[_Landing] = []

    def __repr__(self) -> str:
        return f"<{self.agent} peers={len(self._names)} unsettled={len(self._unsettled)}>"

    def name_of(self, peer: NixlPeer) -> str:
        """Raises `TransferFailed` when the peer's metadata are not good."""
        self._sweep()
        if peer.metadata not in self._names:
            self._names[peer.metadata] = self.agent.add(peer.metadata)
        return self._names[peer.metadata]

    def forget(self, peer: NixlPeer) -> None:
        name = self._names.pop(peer.metadata, None)
        if name is None or self.agent.closed:
            return
        with contextlib.suppress(TransferFailed):  # the peer has gone by itself
            self.agent.remove(name)

    def settle(self, landing: _Landing) -> None:
        """Lets go of a probe as soon as it has ended: until then its few bytes are kept."""
        if not self.agent.closed:
            self._unsettled.append(landing)
            self._sweep()

    def _sweep(self) -> None:
        self._unsettled = [landing for landing in self._unsettled if not landing.let_go()]


class _Landing:
    """One probe: a read of the peer's token. Its only part, so an error is its end."""

    def __init__(self, reader: _Reader, peer: NixlPeer) -> None:
        name = reader.name_of(peer)
        self._agent = reader.agent
        self._bytes = np.zeros(_TOKEN_BYTES, np.uint8)
        self._registered = self._agent.register(_bytes_of(self._bytes), "DRAM")
        there = np.array([[peer.token_address, _TOKEN_BYTES, 0]], np.uint64)
        try:
            self.read = self._agent.prepare(name, (there, "DRAM"), (_bytes_of(self._bytes), "DRAM"))
        except TransferFailed:
            self._agent.deregister(self._registered)
            raise

    @property
    def content(self) -> bytes:
        return self._bytes.tobytes()

    def let_go(self) -> bool:
        """False while bytes may still arrive."""
        if _poll(self._agent, self.read) is ReadState.MOVING:
            return False
        try:
            self._agent.release(self.read)
            self._agent.deregister(self._registered)
        except TransferFailed as error:
            _log.warning("after a probe: %s", error)
        return True


async def _landed(agent: NixlAgent, read: int, state: ReadState, size: int) -> bool:
    """Waits until all bytes are there. False: the agent was closed. Raises `TransferFailed`."""
    loop = asyncio.get_running_loop()
    busy_until = loop.time() + _BUSY_S + size / _BUSY_BYTES_PER_S
    while state is ReadState.MOVING:
        await asyncio.sleep(0 if loop.time() < busy_until else _PAUSE_S)
        if agent.closed:
            return False
        state = agent.poll(read)
    if state is ReadState.FAILED:
        raise TransferFailed("NIXL could not read the blocks: the connection to the peer is lost")
    return True


def _poll(agent: NixlAgent, read: int) -> ReadState:
    try:
        return agent.poll(read)
    except TransferFailed:
        return ReadState.FAILED


def _peer_of(offer: bytes, layout: Layout) -> NixlPeer:
    if len(offer) <= _OFFER.size or not offer.startswith(_MARK):
        raise TransferFailed("what the peer offers for NIXL is not of this release")
    _, address, token = _OFFER.unpack_from(offer)
    return NixlPeer(offer[_OFFER.size :], address, token, layout)


def _all_blocks(layout: Layout) -> Spans:
    rows = [(region.address, region.size, layout.device_id) for region in layout.regions]
    return np.array(rows, np.uint64)


def _bytes_of(array: np.ndarray[Any, np.dtype[np.uint8]]) -> Spans:
    return np.array([[array.ctypes.data, array.nbytes, 0]], np.uint64)


def _blocks(layout: Layout, block_ids: tuple[int, ...]) -> Spans:
    """Of each block in each layer."""
    ids = np.asarray(block_ids, np.uint64)
    parts = []
    for region in layout.regions:
        addresses = np.uint64(region.address) + ids * np.uint64(region.stride)
        lengths = np.full(len(ids), region.block_bytes, np.uint64)
        devices = np.full(len(ids), layout.device_id, np.uint64)
        parts.append(np.stack([addresses, lengths, devices], axis=1))
    return np.concatenate(parts)
