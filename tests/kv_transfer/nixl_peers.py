"""Processes that serve NIXL peers, quickly started: NIXL is imported once, in a process that forks the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.transport import Endpoint, Layout, Region

LAYERS, BLOCKS, BLOCK_BYTES = 3, 64, 4096
Cache = np.ndarray[Any, np.dtype[np.uint8]]


def layout_of(cache: Cache) -> Layout:
    """Layer first, as vLLM does on CPU: the layers share one storage."""
    base, layer = cache.ctypes.data, cache.strides[0]
    return Layout(tuple(Region(base + i * layer, cache.strides[1], BLOCK_BYTES, BLOCKS) for i in range(LAYERS)))


def pattern() -> Cache:
    cache = np.empty((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    cache[:] = (np.arange(LAYERS)[:, None] * BLOCKS + np.arange(BLOCKS)[None, :])[:, :, None] % 251
    return cache


def serve(pipe: Connection) -> None:
    """A writer: serves its peers until it is killed. Tells where it listens."""
    cache = pattern()
    layout = layout_of(cache)
    transport = NixlTransport(layout, "lo")
    sockets = psutil.Process().net_connections("inet")
    listening = {tuple(connection.laddr) for connection in sockets if connection.status == psutil.CONN_LISTEN}
    pipe.send((os.getpid(), Endpoint({"nixl": transport.offer()}, layout), listening))
    while not pipe.poll(0.002):
        transport.progress()


def nurse(orders: Connection) -> None:
    """Imports NIXL once, which takes seconds, and forks whoever is asked for before anything of NIXL runs here."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with contextlib.suppress(EOFError):
        while True:
            address, run, arguments = orders.recv()
            if os.fork() == 0:
                orders.close()
                run(Client(address), *arguments)
                os._exit(0)


class Nursery:
    def __init__(self, folder: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._orders, there = spawn.Pipe()
        self._process = spawn.Process(target=nurse, args=(there,))
        self._process.start()
        there.close()
        self._listener = Listener(str(folder / "socket"))

    def start(self, run: Callable[..., None], *arguments: object) -> Connection:
        """A pipe to a new process that runs `run(pipe, *arguments)`."""
        self._orders.send((self._listener.address, run, arguments))
        return self._listener.accept()

    def close(self) -> None:
        self._orders.close()
        self._process.join()
        self._listener.close()


@contextlib.contextmanager
def started_writer(nursery: Nursery) -> Iterator[Writer]:
    writer = Writer(nursery.start(serve))
    yield writer
    writer.kill()


class Writer:
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.pid, self.endpoint, self.listening = pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        while psutil.pid_exists(self.pid):
            time.sleep(0.001)
