"""A cluster that is started for a measurement ends with it, however that ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from cluster.errors import StartFailed
from deploy.profiling.own_cluster import own_cluster

_SERVES = """#!/bin/sh
echo "$@" > {arguments}
trap 'echo interrupted > {ended}; exit 130' INT
echo Baton is ready.
while :; do sleep 0.02; done
"""
_FAILS = """#!/bin/sh
echo "baton up: no room" >&2
exit 1
"""


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written by a cluster that was interrupted."""
    path = tmp_path / "ended"
    stand_in(tmp_path, monkeypatch, _SERVES.format(arguments=tmp_path / "arguments", ended=path))
    return path


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Runs in place of Python, so in place of `baton up`."""
    path = folder / "python"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_cluster_lasts_as_long_as_its_block(ended: Path, tmp_path: Path) -> None:
    with own_cluster(Path("c.yaml"), 20.0):
        assert not ended.exists()
    assert ended.exists()
    assert (tmp_path / "arguments").read_text() == "-m deploy.cli.main up c.yaml --deadline 20.0\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_is_told_to_end_takes_the_cluster_along(number: signal.Signals, ended: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), own_cluster(Path("c.yaml"), 20.0):
        os.kill(os.getpid(), number)
    assert ended.exists()
    assert signal.getsignal(number) is before


def test_a_cluster_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, _FAILS)
    with pytest.raises(StartFailed, match="baton up: no room"), own_cluster(Path("c.yaml"), 20.0):
        raise AssertionError("does not serve")
