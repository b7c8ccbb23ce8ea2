"""`baton up -d` waits for another process that owns the cluster, and answers for it until it serves."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import up

_OWNER = [sys.executable, "-c", "import signal; signal.pause()"]  # starts no cluster, and ends when it is asked to


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that were started, each in place of an owner."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(_OWNER, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    yield started
    for owner in started:
        if owner.poll() is None:
            owner.kill()
            owner.wait()


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_an_interrupt_before_a_detached_cluster_serves_ends_its_owner(
    asked: signal.Signals, owners: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (config := tmp_path / "c.yaml").write_text("{name: mine, model: {path: none}, engine: {kind: simulated}}")

    def read_record(_: str) -> None:
        if owners:
            signal.raise_signal(asked)

    monkeypatch.setattr(up, "read_record", read_record)
    with pytest.raises(KeyboardInterrupt):
        up.run_up(config, detach=True, deadline_s=60.0)
    assert [owner.returncode for owner in owners] == [-signal.SIGTERM]
