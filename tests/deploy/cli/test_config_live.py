"""`baton config show`, `diff` and `apply`: effective values, where they come from, what a change does, and what cannot
be changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import Config
from deploy import change_order
from deploy.cluster_record import ClusterRecord, recorded
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter

FILE: dict[str, Any] = {"name": "mine", "model": {"path": "none"}, "router": {"grpc_port": 9001}}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(FILE | changes))
    return str(path)


async def test_a_shown_configuration_is_a_configuration_file(baton: Baton, tmp_path: Path) -> None:
    shown = await baton("config", "show", written(tmp_path))
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    again = await baton("config", "show", str(tmp_path / "shown.yaml"))
    assert (again.code, again.stdout) == (0, shown.stdout)
    assert yaml.safe_load((await baton("config", "show", written(tmp_path), "--given")).stdout) == FILE


async def test_a_model_where_this_user_cannot_look_is_told_by_its_key(baton: Baton, tmp_path: Path) -> None:
    wanted = written(tmp_path, model={"path": "/" + "a" * 300})
    for command in (("config", "show"), ("up", "-d")):
        told = await baton(*command, wanted)
        assert (told.code, told.stderr.count("\n")) == (2, 1)
        assert "aaa: File name too long; name a directory that this user may enter" in told.stderr


async def test_the_table_says_what_is_a_default(baton: Baton, router: StubRouter, tmp_path: Path) -> None:
    lines = (await baton("config", "show", written(tmp_path), "-o", "table")).stdout.splitlines()
    assert any(line.split() == ["router.grpc_port", "9001", str(tmp_path / "c.yaml")] for line in lines)
    assert any(line.split() == ["router.http_port", "8000", "default"] for line in lines)
    live = (await baton("config", "show", "-o", "table", "-e", router.address)).stdout.splitlines()
    assert any(line.split() == ["model.path", "none", "cluster's", "file"] for line in live)


async def test_a_difference_exits_1_and_equality_0(baton: Baton, router: StubRouter, tmp_path: Path) -> None:
    router.config = FILE
    same = await baton("config", "diff", written(tmp_path), "-e", router.address)
    assert (same.code, same.stdout) == (0, "")
    other = written(tmp_path, observability={"log_level": "debug"})
    told = await baton("config", "diff", other, "-e", router.address, "-o", "json")
    assert told.code == 1
    assert json.loads(told.stdout)["differences"] == [
        {"key": "observability.log_level", "live": "info", "file": "debug"}
    ]


@pytest.fixture
def record(router: StubRouter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterRecord:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    router.config = FILE
    return ClusterRecord.of_this_process("mine", "http://nowhere", router.address)


async def test_a_dry_run_tells_what_restarts_and_orders_nothing(
    baton: Baton, record: ClusterRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_order, "order_change", None)  # would fail
    with recorded(record):
        wanted = written(tmp_path, observability={"log_level": "debug"})
        told = await baton("config", "apply", wanted, "--dry-run", "-o", "json")
    document = json.loads(told.stdout)
    assert (told.code, document["restarts"], document["dryRun"]) == (0, ["router", "prefill", "decode"], True)
    assert [change["key"] for change in document["changes"]] == ["observability.log_level"]


@pytest.mark.parametrize(
    ("changes", "restarts"),
    [
        ({"admission": {"queue": {"max_requests": 7}}}, ["router"]),
        ({"decode": {"surge_percent": 50}}, ["router"]),
        ({"decode": {"drain_s": 5.0}}, ["router", "decode"]),
        ({"engine": {"block_size": 64}}, ["router", "prefill", "decode"]),
    ],
)
async def test_a_pool_goes_on_when_no_worker_of_it_reads_what_changes(
    changes: dict[str, Any], restarts: list[str], baton: Baton, record: ClusterRecord, tmp_path: Path
) -> None:
    with recorded(record):
        told = await baton("config", "apply", written(tmp_path, **changes), "--dry-run", "-o", "json")
        table = await baton("config", "apply", written(tmp_path, **changes), "--dry-run")
    assert json.loads(told.stdout)["restarts"] == restarts
    going_on = [line.split()[0] for line in table.stdout.splitlines() if line.endswith("goes on")]
    assert sorted([*going_on, *restarts]) == ["decode", "prefill", "router"]


async def test_what_a_running_cluster_cannot_take_is_refused_with_the_reasons(
    baton: Baton, record: ClusterRecord, tmp_path: Path
) -> None:
    with recorded(record):
        wanted = written(tmp_path, router={"grpc_port": 9002}, decode={"replicas": 9, "resources": {"pd": 1}})
        told = await baton("config", "apply", wanted, "--yes")
    assert told.code == 6
    assert "router.grpc_port: 9001 is fixed" in told.stderr
    assert "needs 11 CPUs, and Ray was started for 3" in told.stderr
    assert "needs 9 of resource pd, and Ray was started with 0" in told.stderr


async def test_a_change_for_which_the_machine_has_too_few_gpus_is_refused(
    baton: Baton, record: ClusterRecord, tmp_path: Path
) -> None:
    gpus = {"engine": {"device": "gpu"}, "prefill": {"gpus_per_replica": 2}, "decode": {"gpus_per_replica": 2}}
    for found, refused in ((3.0, True), (4.0, False), (None, False)):
        with recorded(dataclasses.replace(record, gpus=found)):
            told = await baton("config", "apply", written(tmp_path, **gpus), "--dry-run")
        assert ("needs 4 GPUs" in told.stderr, told.code) == ((True, 6) if refused else (False, 0))


async def test_nothing_is_asked_of_a_cluster_that_runs_with_it_already(
    baton: Baton, record: ClusterRecord, tmp_path: Path
) -> None:
    with recorded(record):
        told = await baton("config", "apply", written(tmp_path))
    assert told.code == 0


async def test_a_change_wants_a_yes_without_a_terminal(baton: Baton, record: ClusterRecord, tmp_path: Path) -> None:
    with recorded(record):
        told = await baton("config", "apply", written(tmp_path, observability={"log_level": "debug"}))
    assert (told.code, "say --yes" in told.stderr) == (2, True)


async def test_no_such_cluster_here_exits_4_and_says_how_kubernetes_takes_it(
    baton: Baton, record: ClusterRecord, tmp_path: Path
) -> None:
    told = await baton("config", "apply", written(tmp_path), "--yes")
    assert told.code == 4
    assert "config render kuberay" in told.stderr


@pytest.mark.parametrize(("given", "waits_s"), [((), 1_200.0 + 60.0 + 2 * 240.0), (("--deadline", "7"), 7.0)])
async def test_the_end_of_a_change_is_waited_for_as_long_as_old_replicas_may_drain(
    given: tuple[str, ...],
    waits_s: float,
    baton: Baton,
    record: ClusterRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    def ordered(record: ClusterRecord, config: Config, deadline_s: float) -> None:
        waited.append(deadline_s)

    monkeypatch.setattr(change_order, "order_change", ordered)
    with recorded(record):
        wanted = written(tmp_path, router={"grpc_port": 9001, "request_deadline_s": 5.0})  # the new ones drain quickly
        told = await baton("config", "apply", wanted, "--yes", *given)
    assert (told.code, waited) == (0, [waits_s])
