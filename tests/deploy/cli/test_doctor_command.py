"""`baton doctor`: whom it asks, and what it makes of a cluster that does not let it look."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import grpc
import pytest
import yaml

from deploy.cluster_record import ClusterRecord, recorded
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter

KEY_NEEDED = (grpc.StatusCode.UNAUTHENTICATED, "a key is needed here")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("BATON_ENDPOINT", raising=False)


async def check(baton: Baton, name: str, *arguments: str) -> tuple[str, str, str]:
    """Verdict, what was found, and what to do."""
    document = json.loads((await baton("doctor", "--quick", *arguments, "-o", "json")).stdout)
    (found,) = [each for each in document["checks"] if each["name"] == name]
    return found["verdict"], found["found"], found["whatToDo"]


@pytest.mark.parametrize("named", [False, True])
async def test_a_cluster_that_wants_a_key_is_not_taken_for_nobody(
    baton: Baton, router: StubRouter, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    router.refusal = KEY_NEEDED
    monkeypatch.setattr("deploy.cli.doctor_command._USUAL", router.address)
    verdict, found, what_to_do = await check(baton, "cluster", *(("-e", router.address) if named else ()))
    assert verdict == ("FAIL" if named else "WARN")
    assert f"{router.address}: not allowed: a key is needed here" in found
    assert "a cluster is there" in what_to_do


async def test_a_home_that_cannot_be_written_is_a_finding(
    baton: Baton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (file := tmp_path / "c.yaml").write_text("{model: {path: none}, engine: {kind: simulated}}")
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    verdict, found, what_to_do = await check(baton, "state folder", str(file))
    assert (verdict, "cannot be made" in found, "XDG_STATE_HOME" in what_to_do) == ("FAIL", True, True)


async def test_where_nobody_is_none_need_be_unless_it_was_named(baton: Baton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.cli.doctor_command._USUAL", "127.0.0.1:1")
    verdict, found, what_to_do = await check(baton, "cluster")
    assert (verdict, "cannot connect" in found, "--endpoint" in what_to_do) == ("WARN", True, True)
    assert (await check(baton, "cluster", "-e", "127.0.0.1:1"))[0] == "FAIL"


async def test_the_endpoint_comes_from_the_environment_as_everywhere(
    baton: Baton, router: StubRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_ENDPOINT", router.address)
    assert (await check(baton, "cluster"))[:2] == ("OK", f"router-1 answers at {router.address}")


@pytest.mark.parametrize("refusal", [None, KEY_NEEDED], ids=["open", "guarded"])
async def test_a_port_that_a_router_holds_is_the_clusters(
    baton: Baton, router: StubRouter, tmp_path: Path, refusal: tuple[grpc.StatusCode, str] | None
) -> None:
    router.refusal = refusal
    port = int(router.address.rpartition(":")[2])
    found = await check(baton, "port grpc", written(tmp_path, port), "-e", router.address)
    assert found == ("OK", f"{router.address} is the running cluster's", "")


async def test_a_port_of_a_cluster_that_was_started_here_needs_no_answer(baton: Baton, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with recorded(ClusterRecord.of_this_process("mine", "", f"127.0.0.1:{port}")):
            assert (await check(baton, "port grpc", written(tmp_path, port), "-e", "127.0.0.1:1"))[0] == "OK"
        with recorded(ClusterRecord.of_this_process("mine", "", "127.0.0.1:1")):
            assert (await check(baton, "port grpc", written(tmp_path, port), "-e", "127.0.0.1:1"))[0] == "FAIL"


def written(folder: Path, grpc_port: int) -> str:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "model": {"path": "none"}, "router": {"grpc_port": grpc_port}}))
    return str(file)
