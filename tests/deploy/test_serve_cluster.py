"""What `baton up` tells of a part that did not start, and how it looks for one that did."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

from cluster.config import load_config, parse_config
from cluster.errors import StartFailed
from cluster.pool_options import ACCELERATOR
from deploy.free_port import free_port
from deploy.serve_cluster import ServeCluster, _last_words
from tests.ipv6 import NEEDS_IPV6
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
        cluster._start_ray(time.monotonic() + 60)


@pytest.mark.parametrize(
    ("prefill", "decode", "needed"),
    [
        ({"gpus_per_replica": 2}, {"gpus_per_replica": 2}, "needs 4 GPUs (1 x 2 of prefill and 1 x 2 of decode)"),
        ({"gpus_per_replica": 1, "replicas": 3}, {"gpus_per_replica": 1}, "needs 4 GPUs"),
        # A pool at zero grows when somebody asks: it has to have room for one.
        (
            {"gpus_per_replica": 2, "autoscale": {"min_replicas": 0, "max_replicas": 1}},
            {"gpus_per_replica": 2, "autoscale": {"min_replicas": 2, "max_replicas": 9}},
            "needs 6 GPUs",
        ),
    ],
)
def test_too_few_gpus_are_said_at_once_with_both_numbers(
    prefill: dict[str, object],
    decode: dict[str, object],
    needed: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with pytest.raises(StartFailed, match="and Ray found 3 on this machine: lower gpus_per_replica") as refused:
        with_gpus(3.0, prefill, decode, monkeypatch, tmp_path)
    assert needed in str(refused.value)


def test_a_cluster_that_has_gpus_for_its_start_alone_starts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    each: dict[str, object] = {"gpus_per_replica": 1, "surge_percent": 100}
    cluster, told = with_gpus(2.0, each, each, monkeypatch, tmp_path)
    assert cluster.gpus == 2.0
    assert told == ["2 GPUs: pools at their largest, surge included, would need 4"]


@pytest.mark.parametrize(
    ("kinds", "there"), [({"accelerator_type:L40S": 1.0}, "L40S"), ({}, "none")], ids=["another", "none"]
)
def test_a_kind_of_accelerator_that_is_not_there_is_said_at_once_with_the_one_that_is(
    kinds: dict[str, float], there: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    each: dict[str, object] = {"gpus_per_replica": 1}
    with pytest.raises(StartFailed, match=f"decode.accelerator_type is H100, and Ray found {there} on this machine"):
        with_gpus(2.0, each, each | {"accelerator_type": "H100"}, monkeypatch, tmp_path, kinds)


def test_a_kind_of_accelerator_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    each: dict[str, object] = {"gpus_per_replica": 1, "accelerator_type": "H100"}
    cluster, _ = with_gpus(2.0, each, each, monkeypatch, tmp_path, {"accelerator_type:H100": 1.0})
    assert cluster.gpus == 2.0


def test_the_resource_of_a_kind_of_accelerator_is_named_as_ray_names_it() -> None:
    from ray._common.utils import RESOURCE_CONSTRAINT_PREFIX

    assert ACCELERATOR == RESOURCE_CONSTRAINT_PREFIX


def with_gpus(
    found: float,
    prefill: dict[str, object],
    decode: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    kinds: dict[str, float] | None = None,
) -> tuple[ServeCluster, list[str]]:
    """A cluster whose Ray has started, on so many GPUs of these kinds; and what it told."""
    resources = {"CPU": 9.0, **({"GPU": found} if found else {}), **(kinds or {})}
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setattr("deploy.serve_cluster.own_folder", lambda: folder)
    sections: dict[str, object] = {"model": {"path": "none"}, "engine": {"device": "gpu", "start_deadline_s": 60}}
    told: list[str] = []
    cluster = ServeCluster(parse_config(sections | {"prefill": prefill, "decode": decode}), told.append)
    cluster._start_ray(time.monotonic() + 60)
    return cluster, told


def test_a_cluster_that_never_came_to_start_ray_is_stopped_without_loading_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class NoRay(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            assert name != "ray", "was loaded"

    ended: list[tuple[object, ...]] = []
    cluster = made(monkeypatch, folder := tmp_path / "own")
    folder.mkdir()
    monkeypatch.setattr("deploy.serve_cluster.end_descendants", lambda *patience: ended.append(patience))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoRay(), *sys.meta_path])
    cluster.stop()
    assert len(ended) == 1
    assert not folder.exists()


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def healthy() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def made(monkeypatch: pytest.MonkeyPatch, folder: Path, **router: object) -> ServeCluster:
    monkeypatch.setattr("deploy.serve_cluster.own_folder", lambda: folder)
    return ServeCluster(parse_config({"model": {"path": "none"}, "router": router}), lambda _: None)


def test_the_cluster_of_this_machine_is_asked_directly_whatever_proxy_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody is there
    with healthy() as port:
        cluster = made(monkeypatch, tmp_path, http_port=port)
        cluster._wait_until_serving(time.monotonic() + 5.0)


def test_addresses_of_ipv6_stand_in_brackets_and_a_wildcard_is_dialled_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = made(monkeypatch, tmp_path, http_host="::1", http_port=8001, grpc_host="::1", grpc_port=9001)
    assert (cluster.http_url, cluster.grpc_address) == ("http://[::1]:8001", "[::1]:9001")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=NEEDS_IPV6)])
def test_a_port_is_looked_at_where_it_will_be_listened_on(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, 0))
        taken.listen()
        hosts = {"http_host": host, "http_port": free_port(), "grpc_host": host}
        cluster = made(monkeypatch, tmp_path, **hosts, grpc_port=taken.getsockname()[1])
        with pytest.raises(StartFailed, match=r"router\.grpc_port: cannot listen on .*:\d+ \(Address already in use\)"):
            cluster._check_ports()
    made(monkeypatch, tmp_path, **hosts, grpc_port=0)._check_ports()
