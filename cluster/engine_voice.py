"""What an engine's processes print: passed on to our own stderr, and the last lines remembered for the one who asks
why the engine died. Knows nothing of engines: a named pipe, a thread that reads it, and a pattern that finds an
exception's line.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import tempfile
import threading
from collections import deque

_CHUNK = 65_536
# "(EngineCore pid=7) ERROR 11-21 10:00:00 [core.py:1510] ValueError: text": a prefix that may be there, then the
# exception.
_PREFIX = re.compile(r"^\([^)]*\)\s?|^[A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]+\]\s?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Timeout)\b(?::.*)?$")


class EngineVoice:
    """Processes write to the named pipe at `path`; it must be open before the first of them starts. Until `seal` they
    may come and go."""

    def __init__(self, keep_lines: int = 400) -> None:
        self._folder = tempfile.mkdtemp(prefix="baton-engine-")
        self.path = os.path.join(self._folder, "voice")
        os.mkfifo(self.path, 0o600)
        self._pipe = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        # Before the engine come processes that only look at the model: the end of the first would be the end of all.
        self._held_open: int | None = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=keep_lines)
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._listen, name="baton-engine-voice", daemon=True)
        self._reader.start()

    def tail(self, lines: int = 20) -> list[str]:
        return [line for line in self._heard() if line.strip()][-lines:]

    def last_words(self) -> str:
        """The last exception that was printed, on one line; empty when there was none."""
        stripped = (_strip_prefix(line) for line in reversed(self._heard()))
        return next((line for line in stripped if _EXCEPTION.match(line)), "")

    def wait_for_end(self, timeout_s: float) -> None:
        """Returns once the voice is sealed and every writer gone, so that nothing said is missing, or the time is over.
        Blocks."""
        self._ended.wait(timeout_s)

    def seal(self) -> None:
        """No more processes will join: takes the pipe's name away, so that not even a killed owner leaves it behind.
        May be called twice."""
        held, self._held_open = self._held_open, None
        if held is not None:
            os.close(held)
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Stops listening, once the last writer is gone. May be called twice."""
        self.seal()
        self._reader.join(timeout=1.0)

    def _heard(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def _hear(self, lines: list[bytes]) -> None:
        with self._lock:
            self._lines.extend(line.decode(errors="replace") for line in lines)

    def _listen(self) -> None:
        partial = b""
        try:
            while True:
                select.select([self._pipe], [], [])
                try:
                    chunk = os.read(self._pipe, _CHUNK)
                except BlockingIOError:
                    continue
                if not chunk:
                    break
                _write_all(chunk)
                *lines, partial = (partial + chunk).split(b"\n")
                self._hear(lines)
        finally:
            self._hear([partial])
            os.close(self._pipe)
            self._ended.set()


def _strip_prefix(line: str) -> str:
    previous = ""
    while line != previous:
        previous, line = line, _PREFIX.sub("", line.strip(), count=1)
    return line


def _write_all(data: bytes) -> None:
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
