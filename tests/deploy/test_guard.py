"""Whichever of the two processes is killed, nothing that they started is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from deploy.processes import started_at

ROOT = Path(__file__).parents[2]

# The worker starts a process in a session of its own, tells both ids and waits; an interrupt ends it with its own code.
_WORKER = """
import os, signal, subprocess, sys
from deploy.guard import guard
guard()
detached = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
def stop(number, frame):
    detached.terminate()
    detached.wait()
    sys.exit(7)
signal.signal(signal.SIGINT, stop)
print(os.getpid(), detached.pid, flush=True)
signal.pause()
"""


@contextmanager
def _guarded(script: str = _WORKER) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    guardian = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert guardian.stdout is not None
    told = [psutil.Process(int(pid)) for pid in guardian.stdout.readline().split()]
    try:
        yield guardian, told
    finally:
        for process in [psutil.Process(guardian.pid), *told] if guardian.poll() is None else told:
            if started_at(process.pid) is not None:
                process.kill()
        guardian.wait()
        guardian.stdout.close()


def _all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def test_the_folder_of_a_killed_worker_is_removed() -> None:
    with_folder = _WORKER.replace("guard()\n", "guard()\nfrom deploy.own_folder import own_folder\nown_folder()\n", 1)
    with _guarded(with_folder) as (guardian, told):
        left = Path("/tmp").glob(f"baton-{told[0].pid}-*")
        assert len(folders := list(left)) == 1
        told[0].kill()
        assert guardian.wait(20) == 128 + signal.SIGKILL
    assert not folders[0].exists()


@pytest.mark.parametrize("victim", ["guardian", "worker"])
def test_whichever_is_killed_nothing_is_left(victim: str) -> None:
    with _guarded() as (guardian, told):
        os.kill(guardian.pid if victim == "guardian" else told[0].pid, signal.SIGKILL)
        assert _all_gone(told)
        assert guardian.wait(20) == (-signal.SIGKILL if victim == "guardian" else 128 + signal.SIGKILL)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_reaches_the_worker_and_its_exit_code_comes_back(asked: signal.Signals) -> None:
    with _guarded() as (guardian, told):
        guardian.send_signal(asked)
        assert guardian.wait(20) == 7
        assert _all_gone(told)
