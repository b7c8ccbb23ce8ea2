"""The NIXL transport: one-sided READs of a peer's registered memory, over what UCX finds (shared memory, RDMA,
NVLink, TCP).

The only module that imports nixl. NIXL's own progress thread polls for ever and is off: a reader progresses its READ in
`poll`, and a writer must call `progress` while a peer connects to it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

from cluster.errors import TransferFailed
from kv_transfer.transport import Endpoint, Layout, ReadState

logging.getLogger("nixl").setLevel(logging.WARNING)  # it announces every agent on stdout

_STATES = {"PROC": ReadState.MOVING, "DONE": ReadState.DONE, "ERR": ReadState.FAILED}


@dataclass(frozen=True, slots=True)
class NixlPeer:
    agent: str
    layout: Layout


@dataclass(slots=True)
class NixlRead:
    handle: Any
    state: ReadState


class NixlTransport:
    """Reads into, and serves reads from, the memory that `layout` describes; it must stay where it is until `close`."""

    name = "nixl"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._agent = nixl_agent(str(uuid.uuid4()), nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        spans = [(r.address, r.stride * r.num_blocks, layout.device_id, "") for r in layout.regions]
        self._registered = self._agent.register_memory(spans, layout.memory)

    def endpoint(self) -> Endpoint:
        return Endpoint({self.name: self._agent.get_agent_metadata()}, self._layout)

    def connect(self, endpoint: Endpoint) -> NixlPeer:
        sizes = [r.block_bytes for r in self._layout.regions]
        if [r.block_bytes for r in endpoint.layout.regions] != sizes:
            raise TransferFailed("the peer's blocks have other sizes than ours")
        with _translated("connect"):
            return NixlPeer(self._agent.add_remote_agent(endpoint.offers[self.name]), endpoint.layout)

    def disconnect(self, peer: NixlPeer) -> None:
        try:
            with _translated("disconnect"):
                self._agent.remove_remote_agent(peer.agent)
        except TransferFailed:
            pass  # the peer has gone by itself

    def start(self, peer: NixlPeer, source: tuple[int, ...], target: tuple[int, ...]) -> NixlRead:
        with _translated("start a read"):
            there = self._agent.get_xfer_descs(_spans(peer.layout, source), peer.layout.memory)
            here = self._agent.get_xfer_descs(_spans(self._layout, target), self._layout.memory)
            handle = self._agent.initialize_xfer("READ", here, there, peer.agent)
        try:
            with _translated("read"):
                return NixlRead(handle, _STATES[self._agent.transfer(handle)])
        except TransferFailed:
            handle.release()
            raise

    def poll(self, read: NixlRead) -> ReadState:
        if read.state is ReadState.MOVING:
            try:
                with _translated("read"):
                    read.state = _STATES[self._agent.check_xfer_state(read.handle)]
            except TransferFailed:
                read.state = ReadState.FAILED
        return read.state

    def cancel(self, read: NixlRead) -> bool:
        try:
            with _translated("cancel"):
                self._agent.release_xfer_handle(read.handle)
        except TransferFailed:
            self.poll(read)
            return False
        return True

    def progress(self) -> None:
        self._agent.get_new_notifs()

    def close(self) -> None:
        with _translated("close"):
            self._agent.deregister_memory(self._registered)


def _spans(layout: Layout, block_ids: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """(address, length, device) of each block in each layer."""
    ids = np.asarray(block_ids, np.uint64)
    parts = []
    for region in layout.regions:
        addresses = np.uint64(region.address) + ids * np.uint64(region.stride)
        lengths = np.full(len(ids), region.block_bytes, np.uint64)
        devices = np.full(len(ids), layout.device_id, np.uint64)
        parts.append(np.stack([addresses, lengths, devices], axis=1))
    return np.concatenate(parts)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """NIXL's errors share no public base: whatever it raises means that no bytes can be trusted."""
    try:
        yield
    except Exception as error:
        raise TransferFailed(f"NIXL cannot {what}: {type(error).__name__}: {error}") from error
