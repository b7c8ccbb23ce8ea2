"""No process outlives its owner, however it was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.processes import descendants, started_at

# A grandchild in a session of its own whose parent is already gone: only adoption finds it.
_FAMILY = """
import os, subprocess, sys
from deploy.processes import adopt_orphans, descendants, end_descendants
adopt_orphans()
parent = "import subprocess, sys; print(subprocess.Popen({child!r}, start_new_session=True, stdout=-3, stderr=-3).pid)"
child = [sys.executable, "-c", {script!r}]
made = subprocess.run([sys.executable, "-c", parent.format(child=child)], stdout=subprocess.PIPE, check=True)
orphan = int(made.stdout)
assert orphan in descendants(os.getpid()), "not adopted"
killed = end_descendants(os.getpid(), patience_s=0.5)
assert descendants(os.getpid()) == []
print(orphan, killed == [orphan])
"""
_OBEDIENT = "import signal; signal.pause()"
_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); [signal.pause() for _ in iter(int, 1)]"
ROOT = Path(__file__).parents[2]


def _family(script: str) -> tuple[int, bool]:
    command = [sys.executable, "-c", _FAMILY.replace("{script!r}", repr(script))]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert answer.returncode == 0, answer.stderr
    orphan, killed = answer.stdout.split()
    return int(orphan), killed == "True"


def test_an_orphan_that_listens_is_asked_to_end() -> None:
    orphan, killed = _family(_OBEDIENT)
    assert not killed
    assert started_at(orphan) is None


def test_an_orphan_that_does_not_listen_is_killed() -> None:
    # It may be asked before it has stopped listening; then it ends like any other.
    orphan, _ = _family(_STUBBORN)
    assert started_at(orphan) is None


def test_a_process_is_named_by_its_id_and_its_start() -> None:
    assert started_at(os.getpid()) == started_at(os.getpid()) is not None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert started_at(ended.pid) is None


def test_children_are_descendants_until_they_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", _OBEDIENT])
    assert child.pid in descendants(os.getpid())
    child.terminate()
    child.wait()
    assert child.pid not in descendants(os.getpid())
