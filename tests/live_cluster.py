"""A Baton cluster run as a user runs it: the `baton up` command in its own process, found by what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.free_port import free_port

START_S = 240.0
STOP_S = 60.0
ROOT = Path(__file__).parent.parent
BATON = Path(sys.executable).parent / "baton"


@dataclass(frozen=True)
class LiveCluster:
    """`pid` owns every process of the cluster. `state`: its XDG_STATE_HOME; `config`: its configuration file."""

    pid: int
    http: str
    grpc: str
    state: Path = Path()
    config: Path = Path()


def local_config(model_path: Path, name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """The shipped local example on free ports, with `sections` merged over it. Unless they say otherwise, every request
    is handed over: most tests are about that."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/examples/local.yaml").read_text())
    config["name"] = name
    config["model"]["path"] = str(model_path)
    config["router"] |= {"http_port": free_port(), "grpc_port": free_port()}
    config["placement"] = {"disaggregate": "always"}
    for section, values in sections.items():
        config.setdefault(section, {}).update(values)
    return config


@contextmanager
def live_cluster(config: dict[str, Any], start_s: float = START_S) -> Iterator[LiveCluster]:
    """Runs `baton up` until the block ends, then stops it with an interrupt as from a terminal. `start_s`: how long it
    may take to become ready.

    Raises `RuntimeError` with the command's output if it does not become ready or does not stop.
    """
    with tempfile.TemporaryDirectory(prefix="baton-test-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            owner = subprocess.Popen(
                [BATON, "up", path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"XDG_STATE_HOME": folder},
                start_new_session=True,
            )
        try:
            if not _ready(owner, start_s):
                raise RuntimeError(f"baton up did not become ready:\n{log_path.read_text()}")
            router = config["router"]
            http, grpc = f"http://127.0.0.1:{router['http_port']}", f"127.0.0.1:{router['grpc_port']}"
            yield LiveCluster(owner.pid, http, grpc, Path(folder), path)
        finally:
            owner.send_signal(signal.SIGINT)
            try:
                owner.wait(STOP_S)
            except subprocess.TimeoutExpired:
                owner.kill()
                owner.wait()
                raise RuntimeError(f"baton up did not stop:\n{log_path.read_text()}") from None
            finally:
                assert owner.stdout is not None
                owner.stdout.close()


def _ready(owner: subprocess.Popen[str], within_s: float) -> bool:
    """Waits for the line that says so; False when the process ends or takes too long."""
    assert owner.stdout is not None
    too_late = threading.Timer(within_s, owner.kill)
    too_late.start()
    try:
        return any("Baton is ready" in line for line in owner.stdout)
    finally:
        too_late.cancel()
