"""What `baton up` tells of a part that did not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.errors import StartFailed
from deploy.serve_cluster import ServeCluster, _last_words
from tests.live_cluster import ROOT

_TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
Traceback (most recent call last):
  File "worker_replica.py", line 57, in start
    await self._starting
OSError: [Errno 12] first
  File "vllm_core.py", line 95, in start
    raise EngineFailed(self._obituary(_first_line(error))) from error
cluster.errors.EngineFailed: vLLM engine (/model): ValueError: no room for the KV cache
  2 GiB are needed"""


def test_the_last_error_is_told_without_its_frames() -> None:
    words = _last_words(_TRACEBACK)
    assert words == (
        "cluster.errors.EngineFailed: vLLM engine (/model): ValueError: no room for the KV cache\n  2 GiB are needed"
    )


def test_a_message_without_an_error_is_told_by_its_end() -> None:
    assert _last_words("a\n\nb") == "a\nb"


def test_a_ray_that_does_not_start_is_told_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", late)
    monkeypatch.setattr("deploy.serve_cluster.own_folder", lambda: tmp_path)
    cluster = ServeCluster(load_config(ROOT / "deploy/examples/local.yaml"), lambda _: None)
    with pytest.raises(StartFailed, match=r"Ray did not start: The current node timed out .* busy"):
        cluster._start_ray()
