"""The thread that lets peers connect to this engine and read from it, while leases are open.

A thread of its own, and a plain one: an event loop that wakes two hundred times a second beside a forward pass makes
that pass a tenth slower; this loop costs it nothing that can be measured.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cluster.errors import TransferFailed

_log = logging.getLogger(__name__)

_EVERY_S = 0.005
_AFTER_TROUBLE_S = 1.0


class PeerServing:
    """Calls `serve` again and again while that is ordered. All methods may be called from any thread."""

    def __init__(self, serve: Callable[[], None]) -> None:
        self._serve = serve
        self._until = 0.0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="kv-serving", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Whether the thread has died: peers could no longer connect."""
        return self._broken

    def serve_for(self, seconds: float) -> None:
        """0 stops it."""
        self._until = time.monotonic() + seconds
        self._wake.set()

    def close(self) -> None:
        """Returns once `serve` is called no more. May be called twice."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if time.monotonic() < self._until:
                    self._once()
                else:
                    self._wake.clear()
                    if time.monotonic() >= self._until and not self._stop.is_set():
                        self._wake.wait()
        except Exception:
            self._broken = True
            _log.exception("the thread that serves readers of KV blocks has died")

    def _once(self) -> None:
        try:
            self._serve()
        except TransferFailed as error:
            _log.warning("cannot serve readers: %s", error)
            self._stop.wait(_AFTER_TROUBLE_S)
        time.sleep(_EVERY_S)
