"""`baton up` ends all that it started, and says why when something does not start."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.live_cluster import BATON, live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(580)]

SIMULATED = {"kind": "simulated", "options": {}}


def _alive(processes: list[psutil.Process]) -> list[str]:
    psutil.wait_procs(processes, timeout=30)
    return [str(process) for process in processes if process.is_running()]


def test_an_interrupt_leaves_no_process(demo_model: Path) -> None:
    with live_cluster(local_config(demo_model, "lifecycle", engine=SIMULATED)) as cluster:
        processes = psutil.Process(cluster.pid).children(recursive=True)
        assert len(processes) > 5
    assert _alive(processes) == []


@pytest.mark.parametrize("victim", ["the command itself", "the process that works for it"])
def test_a_killed_owner_leaves_no_process(demo_model: Path, victim: str) -> None:
    with live_cluster(local_config(demo_model, "killed", engine=SIMULATED)) as cluster:
        command = psutil.Process(cluster.pid)
        processes = command.children(recursive=True)
        (worker,) = command.children()
        (command if victim == "the command itself" else worker).kill()
        assert _alive(processes) == []


def _up(tmp_path: Path, config: dict[str, object], deadline_s: float) -> subprocess.CompletedProcess[str]:
    return _baton(tmp_path, "up", _written(tmp_path, config), "--deadline", str(deadline_s), within_s=deadline_s + 90)


def _written(tmp_path: Path, config: dict[str, object]) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _baton(tmp_path: Path, *arguments: str | Path, within_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BATON, *arguments],
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
    )


def test_a_worker_that_cannot_start_says_why(demo_model: Path, tmp_path: Path) -> None:
    config = local_config(demo_model, "broken", engine={"options": {"max_num_batched_tokens": 1}})
    begin = time.monotonic()
    finished = _up(tmp_path, config, deadline_s=200)
    assert finished.returncode == 1
    assert "max_num_batched_tokens" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert time.monotonic() - begin < 200


def test_a_model_that_is_not_there_refuses_at_once(tmp_path: Path) -> None:
    finished = _up(tmp_path, local_config(tmp_path / "nowhere", "absent"), deadline_s=60)
    assert finished.returncode == 2
    assert "baton model demo" in finished.stderr


def test_a_deadline_ends_a_start_that_takes_too_long(demo_model: Path, tmp_path: Path) -> None:
    finished = _up(tmp_path, local_config(demo_model, "late"), deadline_s=8)
    assert finished.returncode == 1
    assert "deadline" in finished.stderr


def test_a_profile_of_a_configuration_starts_its_cluster_and_ends_it(demo_model: Path, tmp_path: Path) -> None:
    config = local_config(demo_model, "profiled", engine=SIMULATED)
    path, file = _written(tmp_path, config), tmp_path / "profile.yaml"
    sizes = ["--longest", "256", "--most", "2", "--repeats", "1"]
    profiled = _baton(tmp_path, "profile", demo_model, "--start", path, "-f", file, *sizes, within_s=400)
    assert profiled.returncode == 0, profiled.stderr
    assert yaml.safe_load(file.read_text())["kind"] == "EngineProfile"
    left = [process for process in psutil.process_iter(["cmdline"]) if str(path) in (process.info["cmdline"] or [])]
    assert _alive(left) == []
