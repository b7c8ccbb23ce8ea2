"""The HAProxy of a cluster of this machine: files and ports that no other cluster's uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import ray

from cluster.config import RouterConfig
from deploy import free_port
from deploy.free_port import free_ports
from deploy.own_folder import _PARENT, _prefix
from deploy.proxy_environment import own_proxy, proxy_environment

_CONSTANTS = (Path(ray.__file__).parent / "serve/_private/constants.py").read_text()
_NODE_ID = "0" * 56
_LONGEST_SOCKET = 107  # bytes, before the final zero


def test_nothing_of_a_local_clusters_haproxy_lies_where_another_users_may(tmp_path: Path) -> None:
    shared = set(re.findall(r'"(RAY_SERVE_\w+)", "/tmp/', _CONSTANTS))
    own = own_proxy(tmp_path)
    assert shared
    assert {name for name in shared if Path(own.get(name, "/")).is_relative_to(tmp_path)} == shared


def test_serve_reads_every_variable_that_it_is_given(tmp_path: Path) -> None:
    given = {*own_proxy(tmp_path), *proxy_environment(RouterConfig())}
    assert {name for name in given if f'"{name}"' not in _CONSTANTS} == set()


def test_the_socket_for_metrics_has_a_path_that_a_socket_may_have() -> None:
    longest = _PARENT / (_prefix(4_194_304) + "abcdefgh")  # the highest process id, as `tempfile` ends names
    socket = Path(own_proxy(longest)["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"])
    assert len(str(socket.parent / _NODE_ID / socket.name)) <= _LONGEST_SOCKET


def test_ports_drawn_together_differ_and_leave_out_what_is_spoken_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of six ports that are free, two are the router's."""
    monkeypatch.setattr(free_port, "_FIRST", 20_000)
    monkeypatch.setattr(free_port, "_BEYOND", 20_006)
    monkeypatch.setattr(free_port, "_is_free", lambda port: True)
    drawn = own_proxy(tmp_path, {20_001, 20_004})
    ports = {int(value) for name, value in drawn.items() if name.endswith("_PORT")}
    assert ports == {20_000, 20_002, 20_003, 20_005}


def test_ports_of_the_kernels_own_range_differ_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_port, "_BEYOND", free_port._FIRST)
    assert len(set(free_ports(50))) == 50
