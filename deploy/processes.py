"""Every process that this one started, however far down and however detached, so that none outlives it. Linux only.

As a child subreaper this process inherits its orphaned descendants: what a killed child leaves behind is still found.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on, descendants whose parent dies become children of this process. Raises `OSError`."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def started_at(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it does not run.

    Together with the id this names one process: ids are used again, start times with them are not.
    """
    fields = _stat(Path(f"/proc/{pid}"))
    return None if fields is None else int(fields[19])


def children(pid: int) -> list[int]:
    """Ids of the processes whose parent is `pid`."""
    return _families().get(pid, [])


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, parents before children."""
    families = _families()
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in families.get(parent, [])]
        found += frontier
    return found


def _families() -> dict[int, list[int]]:
    """The living children of every process that has any."""
    families: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _living_parent(entry)) is not None:
            families.setdefault(parent, []).append(int(entry.name))
    return families


def kill_trees(pids: Iterable[int]) -> None:
    """Kills these processes with all that they started; whoever holds their handles collects them."""
    _signal_all([below for pid in pids for below in (pid, *descendants(pid))], signal.SIGKILL)


def end_descendants(pid: int, patience_s: float) -> list[int]:
    """Asks every descendant to end, then ends it. Returns those that had to be killed."""
    _signal_all(descendants(pid), signal.SIGTERM)
    if _gone(pid, patience_s):
        return []
    stubborn = descendants(pid)
    while not _childless(pid):
        _signal_all(descendants(pid), signal.SIGKILL)
        _gone(pid, 0.2)
    return stubborn


def _gone(pid: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        _reap()
        if _childless(pid):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)


def _childless(pid: int) -> bool:
    """Looks twice: one whose parent ends during the first look is seen below neither the old parent nor the new."""
    return not descendants(pid) and not descendants(pid)


def _reap() -> None:
    """Collects adopted children that ended, so that they do not stay as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _living_parent(entry: Path) -> int | None:
    fields = _stat(entry)
    return None if fields is None else int(fields[1])


def _stat(entry: Path) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None for a process that is gone or a zombie."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields
