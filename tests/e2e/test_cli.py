"""Every command of `baton` against a live cluster with simulated engines, in all its formats; unknown names; a change
of the configuration while it runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from deploy.cli.main import app
from tests.deploy.cli.every_command import EVERY, Path_, commands, formats, options
from tests.live_cluster import LiveCluster, live_cluster, local_config

pytestmark = pytest.mark.engine

WAIT_S = 20.0
LOCAL = sorted(path for path, command in commands().items() if "endpoint" not in options(command))


@pytest.fixture(scope="module")
def running(demo_model: Path) -> Iterator[LiveCluster]:
    parts = {"cpus_per_replica": 0.5, "drain_s": 5.0}
    config = local_config(
        demo_model,
        "cli",
        engine={"kind": "simulated", "options": {}},
        prefill=parts,
        decode=parts,
        router={"cpus_per_replica": 0.5},
    )
    with live_cluster(config) as cluster:
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = str(cluster.state)
        try:
            yield cluster
        finally:
            del os.environ["XDG_STATE_HOME"]
            if before is not None:
                os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="module")
def names(running: LiveCluster, demo_model: Path) -> dict[str, str]:
    """What the commands' arguments name."""
    asked = baton("chat", "--max-tokens", "8", "What is a baton?", "-e", running.grpc)
    assert asked.exit_code == 0, asked.stderr
    worker = baton("get", "workers", "-o", "name", "-e", running.grpc).stdout.splitlines()[0]
    request = baton("get", "requests", "-o", "name", "-e", running.grpc).stdout.splitlines()[0]
    return {"config": str(running.config), "model": str(demo_model), "worker": worker, "request": request}


def baton(*arguments: str) -> Result:
    ended = CliRunner().invoke(app, list(arguments))
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


@pytest.mark.parametrize("path", sorted(EVERY), ids=" ".join)
def test_a_command_works_in_all_its_formats(
    running: LiveCluster, names: dict[str, str], tmp_path: Path, path: Path_
) -> None:
    case, command = EVERY[path], commands()[path]
    at = [] if path in LOCAL else ["-e", running.grpc]
    for output in [""] if case.stops_work else ["", *formats(command)]:
        given = [argument.format(**names, tmp=str(tmp_path)) for argument in case.arguments]
        ended = baton(*path, *given, *at, *(["-o", output] if output else []))
        assert ended.exit_code == case.code, f"-o {output}\n{ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        if case.code == 0:
            check_format(ended.stdout, output)


def check_format(text: str, output: str) -> None:
    match output:
        case "json":
            assert json.loads(text)
        case "yaml":
            assert all(document is not None for document in yaml.safe_load_all(text))
        case "name":
            assert all(line == line.strip() for line in text.splitlines())
        case "table" | "wide":
            assert "\t" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe", "worker", "decod"),
        ("describe", "pool", "decod"),
        ("describe", "request", "grpc-"),
        ("get", "transfers", "--worker", "decod"),
        ("get", "leases", "--worker", "decod"),
        ("get", "requests", "--worker", "decod"),
        ("get", "events", "--worker", "decod"),
        ("drain", "decod"),
        ("undrain", "decod"),
        ("cache", "flush", "--worker", "decod", "--yes"),
    ],
    ids=" ".join,
)
def test_an_unknown_name_is_told_the_nearest_one(
    running: LiveCluster, names: dict[str, str], arguments: tuple[str, ...]
) -> None:
    ended = baton(*arguments, "-e", running.grpc)
    assert (ended.exit_code, ended.stdout) == (4, "")
    assert "did you mean" in ended.stderr


def test_what_a_command_lists_is_what_happened(running: LiveCluster, names: dict[str, str]) -> None:
    asked = document("get", "requests", "--limit", "500", at=running)["items"]
    found = next(request for request in asked if request["id"] == names["request"])
    assert found["prefillWorker"].startswith("prefill-")
    assert found["decodeWorker"].startswith("decode-")
    assert found["ttftS"] > 0
    assert found["outputTokens"] == 8
    pulls = document("get", "transfers", at=running)["items"]
    assert [pull["outcome"] for pull in pulls] == ["landed"]
    assert pulls[0]["durationS"] > 0
    events = document("get", "events", "--event", "joined", at=running)["items"]
    assert {event["pool"] for event in events} == {"prefill", "decode"}


def test_a_flushed_cache_is_no_longer_in_the_index(running: LiveCluster, names: dict[str, str]) -> None:
    long_prompt = "baton " * 100
    assert baton("chat", "--max-tokens", "2", long_prompt, "-e", running.grpc).exit_code == 0
    wait_for(lambda: document("cache", "stats", at=running)["indexBlocks"] > 0)
    assert baton("cache", "flush", "--yes", "-e", running.grpc).exit_code == 0
    wait_for(lambda: not any(worker["heldBlocks"] for worker in document("cache", "stats", at=running)["workers"]))
    kinds = [event["event"] for event in document("get", "events", at=running)["items"]]
    assert kinds.count("flushed") >= 2


def test_a_measured_profile_is_what_a_plan_counts_from(
    running: LiveCluster, names: dict[str, str], tmp_path: Path
) -> None:
    file = str(tmp_path / "p.yaml")
    sizes = ("--longest", "256", "--most", "2", "--repeats", "1")
    measured = baton("profile", names["model"], "-f", file, *sizes, "-e", running.grpc)
    assert measured.exit_code == 0, measured.stderr
    load = ("--rate", "1", "--prompt-tokens", "200", "--output-tokens", "20", "--ttft", "9", "--itl", "9")
    planned = baton("plan", names["model"], "-w", "CPU", "--profile", file, *load)
    assert planned.exit_code == 0, planned.stderr
    assert f"times are those of {file}" in planned.stdout


@pytest.mark.parametrize(
    ("section", "name", "value", "goes_on"),
    [("router", "max_choices", 7, True), ("observability", "log_level", "warning", False)],
    ids=["what_no_worker_reads", "what_every_part_reads"],
)
def test_another_configuration_replaces_the_parts_that_read_it_and_is_what_is_shown(
    running: LiveCluster, tmp_path: Path, section: str, name: str, value: object, goes_on: bool
) -> None:
    config: dict[str, Any] = yaml.safe_load(baton("config", "show", "-o", "yaml", "-e", running.grpc).stdout)
    config[section][name] = value
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(config))
    assert baton("config", "diff", str(file), "-e", running.grpc).exit_code == 1
    before = set(baton("get", "workers", "-o", "name", "-e", running.grpc).stdout.split())
    applied = baton("config", "apply", str(file), "--yes")
    assert applied.exit_code == 0, applied.stderr
    assert baton("config", "diff", str(file), "-e", running.grpc).exit_code == 0
    after = set(baton("get", "workers", "-o", "name", "-e", running.grpc).stdout.split())
    assert len(after) == 2
    assert (before == after) is goes_on
    assert goes_on or not before & after


def wait_for(true: Callable[[], bool]) -> None:
    """Each look is a call to the router, which paces them."""
    give_up = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < give_up


def document(*arguments: str, at: LiveCluster) -> dict[str, Any]:
    ended = baton(*arguments, "-e", at.grpc, "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told
