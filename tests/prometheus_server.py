"""A real Prometheus for as long as a block lasts, and what it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.free_port import free_port

START_S, CALL_S, STOP_S = 30.0, 10.0, 20.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not in PATH: they are in Debian's package `prometheus`, `apt-get download` and "
    "`dpkg -x` suffice",
)


@dataclass(frozen=True)
class Prometheus:
    url: str

    def values(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series; raises `AssertionError` for an expression that is refused."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=CALL_S) as answer:
                result = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return [(each["metric"], float(each["value"][1])) for each in result]

    def asked_by_promtool(self, expression: str) -> str:
        """What `promtool query instant` prints; raises `AssertionError` where it fails."""
        asked = ["promtool", "query", "instant", self.url, expression]
        ended = subprocess.run(asked, capture_output=True, text=True, timeout=CALL_S, check=False)
        assert ended.returncode == 0, f"{expression}: {ended.stdout}{ended.stderr}"
        return ended.stdout.strip()


@contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """`config` as in its file. Raises `RuntimeError` with its log if it does not start."""
    path, log_path = folder / "prometheus.yaml", folder / "prometheus.log"
    path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_until_ready(server, f"http://{address}", log_path)
        yield Prometheus(f"http://{address}")
    finally:
        server.terminate()
        server.wait(STOP_S)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    give_up = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)  # another process: there is nothing to wait on
    raise RuntimeError(f"prometheus did not start:\n{log_path.read_text()}")
