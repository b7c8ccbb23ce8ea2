"""`baton drain`: what is asked of the router, and how the command ends."""

from __future__ import annotations

import grpc

from protos.baton.v1 import admin_pb2
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter


async def test_a_worker_is_drained_and_given_work_again(baton: Baton, router: StubRouter) -> None:
    ended = await baton("drain", "decode-1", "--reason", "new disk", "-e", router.address)
    assert (ended.code, ended.stderr) == (0, "")
    assert "gets nothing new" in ended.stdout
    ended = await baton("drain", "decode-1", "--undo", "-e", router.address)
    assert (ended.code, ended.stdout) == (0, "decode-1 gets work again\n")
    assert router.drained == [
        admin_pb2.DrainRequest(worker_id="decode-1", reason="new disk"),
        admin_pb2.DrainRequest(worker_id="decode-1", undo=True),
    ]


async def test_a_worker_that_nobody_knows_is_not_found(baton: Baton, router: StubRouter) -> None:
    router.refusal = (grpc.StatusCode.NOT_FOUND, "no worker decode-9: `baton status` lists them")
    ended = await baton("drain", "decode-9", "-e", router.address)
    assert (ended.code, ended.stdout) == (4, "")
    assert "`baton status` lists them" in ended.stderr


async def test_the_status_names_a_drained_worker_and_why(baton: Baton, router: StubRouter) -> None:
    router.status.workers[0].drained = True
    router.status.workers[0].drain_reason = "new disk"
    ended = await baton("status", "-e", router.address)
    assert "drained" in ended.stdout
    assert "new disk" in ended.stdout
