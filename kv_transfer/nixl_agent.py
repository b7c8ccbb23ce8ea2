"""One NIXL agent: memory it knows, peers it knows, reads under way. The only module that imports nixl.

Two facts shape it. NIXL's own progress thread polls for ever and is off: a reader progresses its reads in `poll`, and a
writer must call `progress` while a peer connects to it. And releasing a read does not stop it: bytes go on arriving
where the read put them, so a read that has not ended can be ended by `close` only, which ends them all.
"""

from __future__ import annotations

import gc
import logging
import os
import uuid
import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

from cluster.errors import TransferFailed

_log = logging.getLogger(__name__)
logging.getLogger("nixl").setLevel(logging.WARNING)  # it announces every agent on stdout

T = TypeVar("T")
Spans = np.ndarray[Any, np.dtype[np.uint64]]
"""(address, bytes, device) a row."""


class ReadState(Enum):
    MOVING = "PROC"
    DONE = "DONE"
    FAILED = "ERR"


def configure_network(net_device: str | None) -> None:
    """For all agents that this process makes from now on. `net_device`: the only network interface to use and to listen
    on; None leaves that to UCX, which takes all. Shared memory is usable in any case.

    Where the hardware or the kernel cannot fetch from a peer's memory, UCX would ask the peer to send. That is off
    unless the environment says otherwise: a writer whose reader goes away in the middle of it is aborted by UCX.
    """
    if net_device is not None:
        os.environ["UCX_NET_DEVICES"] = net_device
    os.environ.setdefault("UCX_PROTO_EMULATION_ENABLE", "n")
    # Else whoever connects to a peer whose packets are lost waits in the kernel for minutes, and all pulls with him.
    os.environ.setdefault("UCX_TCP_CONN_NB", "y")
    os.environ.setdefault("UCX_LOG_LEVEL", "error")  # it warns of each block of a read that was ended by `close`


class NixlAgent:
    """All methods raise `TransferFailed` for whatever NIXL raises, and `close` alone may be called twice."""

    def __init__(self) -> None:
        options = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self._agent = _call("start", nixl_agent, str(uuid.uuid4()), options)
        self._registered: list[Any] = []
        self._handles: dict[int, Any] = {}
        self._reads = 0
        self.closed = False

    def __repr__(self) -> str:
        return f"<NixlAgent reads={len(self._handles)} closed={self.closed}>"

    @property
    def plugins(self) -> list[str]:
        """What this installation of NIXL could move bytes over; of these, UCX is used."""
        found: list[str] = _call("list its plugins", self._agent.get_plugin_list)
        return found

    def register(self, spans: Spans, memory: str) -> Any:
        """What is returned can be given to `deregister`; it must stay where it is until then, or until `close`."""
        rows = [(int(address), int(size), int(device), "") for address, size, device in spans]
        registered = _call("register memory", self._agent.register_memory, rows, memory)
        self._registered.append(registered)
        return registered

    def deregister(self, registered: Any) -> None:
        self._registered = [kept for kept in self._registered if kept is not registered]
        _call("deregister memory", self._agent.deregister_memory, registered)

    def metadata(self) -> bytes:
        """What a peer needs for `add`; of everything that is registered by now."""
        return bytes(_call("describe itself", self._agent.get_agent_metadata))

    def add(self, metadata: bytes) -> str:
        """The name of a peer that can be read from now."""
        name = _call("connect", self._agent.add_remote_agent, metadata)
        return name if isinstance(name, str) else name.decode()

    def remove(self, name: str) -> None:
        _call("disconnect", self._agent.remove_remote_agent, name)

    def prepare(self, peer: str, source: tuple[Spans, str], target: tuple[Spans, str]) -> int:
        """A read that has not begun: from the peer's spans in that memory into as many of ours."""
        there = _call("describe a read", self._agent.get_xfer_descs, *source)
        here = _call("describe a read", self._agent.get_xfer_descs, *target)
        handle = _call("prepare a read", self._agent.initialize_xfer, "READ", here, there, peer)
        self._reads += 1
        self._handles[self._reads] = handle
        return self._reads

    def start(self, read: int) -> ReadState:
        """Begins it. May block while bytes move. After an error parts of it may have begun."""
        return ReadState(_call("read", self._agent.transfer, self._handles[read]))

    def poll(self, read: int) -> ReadState:
        """Lets the read progress. After an error of one part, others may still be under way."""
        return ReadState(_call("read", self._agent.check_xfer_state, self._handles[read]))

    def release(self, read: int) -> None:
        """Lets go of a read that is done, or never began."""
        _call("release a read", self._agent.release_xfer_handle, self._handles.pop(read))

    def progress(self) -> None:
        _call("progress", self._agent.get_new_notifs)

    def close(self) -> bool:
        """Ends everything that is under way. False: it could not be ended yet, and bytes may still arrive; call
        again."""
        if not self.closed:
            self._dismantle()
            self.closed = True
        if self._core() is not None:
            gc.collect()
        return self._core() is None

    def _dismantle(self) -> None:
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            _said("release a read", self._agent.release_xfer_handle, handle)
        if not handles:  # else a read may still use what would be deregistered
            for registered in self._registered:
                _said("deregister memory", self._agent.deregister_memory, registered)
        self._registered.clear()
        # Its connections end with the last reference to what stands behind the Python object.
        agent, self._agent = self._agent, None
        self._core = weakref.ref(agent.agent)


def _call(what: str, function: Callable[..., T], *arguments: Any) -> T:
    """NIXL's errors share no public base: whatever it raises means that no bytes can be trusted."""
    try:
        return function(*arguments)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    # Outside the handler, and without what was called: an error that someone keeps must not keep the agent alive.
    del function, arguments
    raise TransferFailed(f"NIXL cannot {what}: {said}")


def _said(what: str, function: Callable[..., object], *arguments: Any) -> None:
    try:
        _call(what, function, *arguments)
    except TransferFailed as error:
        _log.warning("while an agent is closed: %s", error)
