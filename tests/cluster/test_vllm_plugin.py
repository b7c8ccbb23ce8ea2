"""The plugin that ends an engine's processes with their owner: real processes, no engine."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.vllm_plugin import OWNER_VARIABLE, register

# An owner that starts an engine of two processes, one below the other, as vLLM does with its workers; each registers.
_CHAIN = """
import os, subprocess, sys, time
depth, here = int(sys.argv[1]), sys.argv[2]
if depth == 2:
    os.environ["BATON_ENGINE_OWNER"] = str(os.getpid())
else:
    from cluster.vllm_plugin import register
    register()
    register()
open(f"{here}/{depth}.draft", "w").write(str(os.getpid()))
os.rename(f"{here}/{depth}.draft", f"{here}/{depth}")
if depth:
    subprocess.Popen([sys.executable, __file__, str(depth - 1), here])
time.sleep(60)
"""


def wait_for_pids(folder: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    while len(found) < 3:
        found |= {int(f.name): int(f.read_text()) for f in folder.iterdir() if f.name.isdigit()}
        select.select([], [], [], 0.01)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.timeout(30)
def test_an_engines_processes_end_with_their_owner_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    script, pids = tmp_path / "chain.py", tmp_path / "pids"
    script.write_text(_CHAIN)
    pids.mkdir()
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    owner = subprocess.Popen([sys.executable, str(script), "2", str(pids)], env=environment)
    found = wait_for_pids(pids)
    watched = {depth: os.pidfd_open(found[depth]) for depth in (0, 1)}
    try:
        owner.send_signal(number)
        owner.wait()
        for depth, descriptor in watched.items():
            ended, _, _ = select.select([descriptor], [], [], 10.0)
            assert ended, f"process {depth} outlived its owner"
    finally:
        for depth, descriptor in watched.items():
            os.close(descriptor)
            subprocess.run(["kill", "-9", str(found[depth])], check=False, capture_output=True)


def test_a_process_without_an_owner_and_the_owner_itself_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    before = threading.active_count()
    monkeypatch.delenv(OWNER_VARIABLE, raising=False)
    register()
    monkeypatch.setenv(OWNER_VARIABLE, str(os.getpid()))
    register()
    assert threading.active_count() == before
