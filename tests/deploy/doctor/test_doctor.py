"""What the doctor makes of figures: of a machine, and of a cluster's status."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from cluster.config_store import StoreConfig
from deploy.cli.status_document import ClusterStatus, cluster_status
from deploy.doctor import machine
from deploy.doctor.check import Check, Verdict, ok, warn, worst
from deploy.doctor.live import live_checks
from deploy.doctor.packages import nixl, store
from protos.baton.v1 import worker_pb2
from tests.deploy.cli.stub_router import healthy_status

GIB = 1 << 30
RELEASE = "0.1.0"


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (machine.python((3, 11, 7)), Verdict.OK),
        (machine.python((3, 10, 1)), Verdict.FAIL),
        (machine.python((3, 14, 0)), Verdict.FAIL),
        (machine.shared_memory(4 * GIB), Verdict.OK),
        (machine.shared_memory(GIB), Verdict.WARN),
        (machine.shared_memory(1 << 20), Verdict.FAIL),
        (machine.open_files(65_536), Verdict.OK),
        (machine.open_files(20_000), Verdict.WARN),
        (machine.open_files(1_024), Verdict.FAIL),
        (machine.locked_memory(8 << 20, rdma=False), Verdict.OK),
        (machine.locked_memory(8 << 20, rdma=True), Verdict.WARN),
        (machine.network(["mlx5_0"]), Verdict.OK),
        (machine.network([]), Verdict.WARN),
        (machine.gpu(wanted=True, found=0), Verdict.FAIL),
        (machine.gpu(wanted=False, found=0), Verdict.OK),
        (machine.gpu(wanted=True, found=8), Verdict.OK),
        (machine.model_directory("/no/such/model"), Verdict.FAIL),
        (machine.model_directory("meta-llama/some-model"), Verdict.WARN),
        (store(StoreConfig(), "c"), Verdict.OK),
        (store(StoreConfig(url="redis://127.0.0.1:1/0"), "c"), Verdict.FAIL),
        (nixl((sys.executable, "-c", "print('[\"UCX\"]')")), Verdict.OK),
        (nixl((sys.executable, "-c", "raise ImportError('no libucs')"), wanted=True), Verdict.FAIL),
        (nixl((sys.executable, "-c", "raise ImportError('no libucs')"), wanted=False), Verdict.WARN),
    ],
    ids=lambda value: value.name if isinstance(value, Check) else value.value,
)
def test_a_figure_is_judged_and_what_is_wrong_says_what_to_do(check: Check, verdict: Verdict) -> None:
    assert check.verdict is verdict, check
    assert check.found
    assert bool(check.what_to_do) == (verdict is not Verdict.OK)


def test_a_broken_installation_is_told_in_its_own_last_words() -> None:
    assert nixl((sys.executable, "-c", "raise ImportError('no libucs')")).found == "ImportError: no libucs"


def test_a_model_directory_must_be_readable(tmp_path: Path) -> None:
    assert machine.model_directory(str(tmp_path)).verdict is Verdict.FAIL
    (tmp_path / "config.json").write_text("{}")
    assert machine.model_directory(str(tmp_path)).verdict is Verdict.OK


@pytest.mark.parametrize("path", ["/" + "a" * 300, "~no-such-user/model"])
def test_a_model_where_this_user_cannot_look_fails(path: str) -> None:
    check = machine.model_directory(path)
    assert (check.verdict, check.found.startswith(f"{path}: ")) == (Verdict.FAIL, True)


def test_the_folder_for_records_must_be_there_and_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert machine.state_folder() == ok("state folder", str(tmp_path / "baton"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert machine.state_folder().verdict is Verdict.FAIL
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    assert "Not a directory" in machine.state_folder().found


def test_a_port_is_free_the_clusters_or_somebody_elses() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wanted = [("http", "127.0.0.1", port)]
        assert [check.verdict for check in machine.ports(wanted, lambda *_: False)] == [Verdict.FAIL]
        assert [check.verdict for check in machine.ports(wanted, lambda *_: True)] == [Verdict.OK]
    assert [check.verdict for check in machine.ports(wanted, lambda *_: False)] == [Verdict.OK]


def test_a_port_of_ipv6_stands_in_brackets() -> None:
    [check] = machine.ports([("http", "::1", 0)], lambda *_: True)
    assert check.found.startswith("[::1]:0 is ")


def test_the_worst_verdict_counts() -> None:
    assert worst([ok("a", "x"), warn("b", "x", "do")]) is Verdict.WARN
    assert worst([]) is Verdict.OK


def status(**changes: object) -> ClusterStatus:
    """Healthy but for `changes` of the second worker."""
    answer = healthy_status()
    answer.store.Clear()
    for key, value in changes.items():
        target = (
            answer.workers[1] if key in ("unreachable", "clock_ahead_s", "heard_s") else answer.workers[1].description
        )
        setattr(target, key, value)
    return cluster_status(answer)


def verdicts(found: ClusterStatus, own: str = RELEASE) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in live_checks(found, own)}


def test_a_healthy_cluster_is_all_ok() -> None:
    assert set(verdicts(status()).values()) == {Verdict.OK}


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"unreachable": "refused", "heard_s": 4.0}, "worker d1", Verdict.FAIL),
        ({"unreachable": "no answer", "heard_s": 0.5}, "worker d1", Verdict.WARN),
        ({"state": worker_pb2.WORKER_STATE_STALLED}, "worker d1", Verdict.FAIL),
        ({"heard_s": 30.0}, "worker d1", Verdict.WARN),
        ({"version": "0.0.9"}, "versions", Verdict.FAIL),
        ({"clock_ahead_s": 0.5}, "clocks", Verdict.WARN),
        ({"clock_ahead_s": -20.0}, "clocks", Verdict.FAIL),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_worker_is_found(changes: dict[str, object], name: str, verdict: Verdict) -> None:
    found = verdicts(status(**changes))
    assert found[name] is verdict
    assert {other for key, other in found.items() if key != name} == {Verdict.OK}


def test_a_command_of_another_version_is_warned() -> None:
    assert verdicts(status(), own="9.9.9")["versions"] is Verdict.WARN


def test_a_cluster_at_zero_that_should_be_there_is_all_ok() -> None:
    answer = healthy_status()
    answer.store.Clear()
    del answer.workers[:]
    for pool in answer.pools:
        pool.ready = pool.total = pool.wanted = 0
    checks = live_checks(cluster_status(answer), RELEASE)
    assert {check.verdict for check in checks} == {Verdict.OK}
    assert next(check.found for check in checks if check.name == "pool decode") == "0 of 0 ready, none wanted"
    answer.pools[1].wanted = 2
    assert verdicts(cluster_status(answer))["pool decode"] is Verdict.FAIL


def test_a_pool_without_a_ready_worker_and_a_store_that_is_away_fail() -> None:
    answer = healthy_status()
    answer.pools[0].ready = 0
    found = verdicts(cluster_status(answer))
    assert (found["pool prefill"], found["routers' store"]) == (Verdict.FAIL, Verdict.FAIL)
