"""A cluster of our own for as long as a block lasts: `baton up` as a process, ended as from a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import StartFailed
from deploy.interrupts import interruptible, uninterruptible

_READY = "Baton is ready"
_STOP_S = 60.0


@contextmanager
def own_cluster(config: Path, start_s: float) -> Iterator[None]:
    """It serves inside the block, and ends with it also where this process is told to end. Raises `StartFailed` with
    the cluster's own words."""
    command = [sys.executable, "-m", "deploy.cli.main", "up", str(config), "--deadline", str(start_s)]
    with interruptible(), tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        try:
            if not _comes_up(process, start_s + _STOP_S):
                said.seek(0)
                raise StartFailed(said.read().strip() or "the cluster ended without a word")
            yield
        finally:
            with uninterruptible():
                _end(process)


def _comes_up(process: subprocess.Popen[str], within_s: float) -> bool:
    assert process.stdout is not None
    late = threading.Timer(within_s, process.send_signal, (signal.SIGINT,))
    late.start()
    try:
        return any(_READY in line for line in process.stdout)
    finally:
        late.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    """Ray takes SIGTERM for a crash: it is interrupted, and killed only when it does not end by that."""
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its guard ends what it leaves
        process.wait()
    finally:
        process.stdout.close()
