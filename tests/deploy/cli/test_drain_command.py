"""`baton drain`: what is asked of the router, and how the command ends."""

from __future__ import annotations

import json

import grpc
import pytest
import yaml

from protos.baton.v1 import admin_pb2, worker_pb2
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter, healthy_status


async def test_a_worker_is_drained_and_given_work_again(baton: Baton, router: StubRouter) -> None:
    ended = await baton("drain", "decode-1", "--reason", "new disk", "-e", router.address)
    assert (ended.code, ended.stderr) == (0, "")
    assert "gets nothing new; what it still has in 60 s moves" in ended.stdout
    ended = await baton("drain", "decode-1", "--deadline", "0", "-e", router.address)
    assert "what it still has in 0 s moves" in ended.stdout
    for undo in (("drain", "decode-1", "--undo"), ("undrain", "decode-1")):
        ended = await baton(*undo, "-e", router.address)
        assert ended.code == 0
        assert ended.stdout.startswith("decode-1 gets work again")
    assert router.drained == [
        admin_pb2.DrainRequest(worker_id="decode-1", reason="new disk"),
        admin_pb2.DrainRequest(worker_id="decode-1", deadline_s=0.0),
        admin_pb2.DrainRequest(worker_id="decode-1", undo=True),
        admin_pb2.DrainRequest(worker_id="decode-1", undo=True),
    ]


async def test_what_acts_at_once_cannot_be_waited_for(baton: Baton, router: StubRouter) -> None:
    for option in (("--wait",), ("--deadline", "5")):
        ended = await baton("drain", "d1", "--undo", *option, "-e", router.address)
        assert (ended.code, ended.stdout) == (2, "")
    assert router.drained == []


def seen(drained: bool) -> admin_pb2.StatusResponse:
    status = healthy_status()
    status.workers[1].drained = drained
    return status


def without_d1() -> admin_pb2.StatusResponse:
    status = healthy_status()
    del status.workers[1]
    return status


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.cli.drain_command._LOOK_S", 0.01)
    monkeypatch.setattr("deploy.cli.drain_command._END_S", 0.2)


@pytest.mark.usefixtures("_short")
async def test_it_waits_until_the_worker_is_gone(baton: Baton, router: StubRouter) -> None:
    router.later_statuses = [seen(False), seen(True), seen(False), seen(True), without_d1()]
    ended = await baton("drain", "d1", "--wait", "--deadline", "5", "-e", router.address)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.endswith("d1 is gone\n")


@pytest.mark.usefixtures("_short")
async def test_the_wait_ends_when_somebody_undoes_the_drain(baton: Baton, router: StubRouter) -> None:
    router.later_statuses = [seen(True), seen(False)]
    ended = await baton("drain", "d1", "--wait", "--deadline", "5", "-e", router.address)
    assert ended.code == 6
    assert "undone" in ended.stderr


@pytest.mark.usefixtures("_short")
async def test_the_wait_has_an_end(baton: Baton, router: StubRouter) -> None:
    router.later_statuses = [seen(True)]
    ended = await baton("drain", "d1", "--wait", "--deadline", "0", "-e", router.address)
    assert ended.code == 124
    assert "still there" in ended.stderr


async def test_a_worker_that_nobody_knows_is_not_found(baton: Baton, router: StubRouter) -> None:
    router.refusal = (grpc.StatusCode.NOT_FOUND, "worker 'decode-9' is not known; did you mean decode-1?")
    ended = await baton("drain", "decode-9", "-e", router.address)
    assert (ended.code, ended.stdout) == (4, "")
    assert "did you mean decode-1?" in ended.stderr


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    ("arguments", "state", "deadline_s"),
    [
        (("drain", "d1", "--deadline", "5"), "ordered", 5.0),
        (("drain", "d1", "--deadline", "5", "--wait"), "gone", 5.0),
        (("drain", "d1", "--undo"), "undone", None),
        (("undrain", "d1"), "undone", None),
    ],
)
async def test_what_was_done_is_one_document(
    baton: Baton, router: StubRouter, arguments: tuple[str, ...], state: str, deadline_s: float | None
) -> None:
    router.status = without_d1()
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        ended = await baton(*arguments, "-o", form, "-e", router.address)
        assert (ended.code, ended.stderr) == (0, "")
        assert read(ended.stdout) == {
            "apiVersion": "baton/v1",
            "kind": "Drain",
            "worker": "d1",
            "state": state,
            "deadlineS": deadline_s,
        }


async def test_the_status_names_a_drained_worker_and_why(baton: Baton, router: StubRouter) -> None:
    router.status.workers[0].drained = True
    router.status.workers[0].drain_reason = "new disk"
    ended = await baton("status", "-e", router.address)
    assert "ready, to be drained" in ended.stdout
    assert "new disk" in ended.stdout


async def test_the_status_tells_what_time_a_draining_worker_has_left(baton: Baton, router: StubRouter) -> None:
    description = router.status.workers[1].description
    description.state, description.drain_left_s = worker_pb2.WORKER_STATE_DRAINING, 12.34
    ended = await baton("status", "-e", router.address)
    assert "draining, 12 s left" in ended.stdout
    ended = await baton("status", "-o", "json", "-e", router.address)
    assert [worker["drainLeftS"] for worker in json.loads(ended.stdout)["workers"]] == [None, 12.34]
