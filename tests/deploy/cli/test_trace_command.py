"""`baton trace`: the router's spans as a stable document, or as a tree."""

from __future__ import annotations

import json

import grpc
import pytest
import yaml

from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter


@pytest.mark.parametrize("output", ["json", "yaml"])
async def test_the_document_holds_every_span_with_its_depth(baton: Baton, router: StubRouter, output: str) -> None:
    ended = await baton("trace", "cmpl-1", "-e", router.address, "-o", output)
    document = json.loads(ended.stdout) if output == "json" else yaml.safe_load(ended.stdout)
    assert (ended.code, ended.stderr) == (0, "")
    assert (document["kind"], document["request"], document["traceId"]) == ("Trace", "cmpl-1", "4b" * 16)
    assert [(span["name"], span["depth"]) for span in document["spans"]] == [
        ("request", 0),
        ("decode", 1),
        ("transfer nixl", 2),
    ]
    assert document["spans"][2]["failed"] == "no route"
    assert document["spans"][1]["parentId"] == document["spans"][0]["spanId"]


async def test_the_tree_is_drawn_by_depth_with_times_and_reasons(baton: Baton, router: StubRouter) -> None:
    ended = await baton("trace", "cmpl-1", "-e", router.address)
    assert ended.code == 0
    _, request, decode, transfer = ended.stdout.splitlines()
    assert request.startswith("request ")
    assert decode.startswith("  decode ")
    assert "worker_id=d1" in decode
    assert transfer.startswith("    transfer nixl")
    for words in ("110.000ms", "20.000ms", "failed: no route", "blocks=0"):
        assert words in transfer


async def test_a_request_that_nobody_knows_is_not_found(baton: Baton, router: StubRouter) -> None:
    router.refusal = (grpc.StatusCode.NOT_FOUND, "request r is in no journal")
    ended = await baton("trace", "r", "-e", router.address)
    assert (ended.code, ended.stdout) == (4, "")
    assert "is in no journal" in ended.stderr


async def test_no_router_no_id_and_no_answer_are_told_apart(baton: Baton, router: StubRouter) -> None:
    assert (await baton("trace", "r", "-e", "127.0.0.1:1")).code == 7
    assert (await baton("trace")).code == 2
    router.silent = True
    assert (await baton("trace", "r", "-e", router.address, "--timeout", "0.2")).code == 124
