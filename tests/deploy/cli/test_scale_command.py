"""`baton scale` and `baton autoscale`: what is asked of the router, what is printed, and how the commands end."""

from __future__ import annotations

import json

import grpc
import pytest
import yaml

from deploy.cli.autoscale_document import autoscaling
from protos.baton.v1 import admin_pb2, worker_pb2
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter, sized

PREFILL, DECODE = worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE
VERBS = [("show",), ("explain",), ("pause",), ("resume",)]


async def test_ranges_bound_numbers_pin_and_auto_goes_back(baton: Baton, router: StubRouter) -> None:
    for sizes in (("prefill=2..6", "decode=3"), ("decode=auto",), ("prefill=0..4",)):
        ended = await baton("scale", *sizes, "-e", router.address)
        assert (ended.code, ended.stderr) == (0, "")
    order = admin_pb2.PoolSizeOrder
    assert [list(request.pools) for request in router.scaled] == [
        [order(role=PREFILL, least=2, most=6), order(role=DECODE, least=3, most=3)],
        [order(role=DECODE, configured=True)],
        [order(role=PREFILL, least=0, most=4)],
    ]


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (("prefil=2",), "did you mean prefill?"),
        (("prefill",), "expected POOL=SIZE"),
        (("prefill=many",), "a number, a range such as 2..6, or auto"),
        (("prefill=2..",), "a number, a range"),
        (("prefill=-1",), "a number, a range"),
        (("prefill=6..2",), "6 is above 2"),
        (("prefill=2", "prefill=3"), "each pool once"),
    ],
)
async def test_sizes_that_make_no_sense_reach_no_router(
    baton: Baton, router: StubRouter, sizes: tuple[str, ...], says: str
) -> None:
    ended = await baton("scale", "-e", router.address, "--", *sizes)
    assert (ended.code, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert router.scaled == []


async def test_sizes_that_the_router_refuses_fail_with_its_words(baton: Baton, router: StubRouter) -> None:
    router.refusal = grpc.StatusCode.INVALID_ARGUMENT, "prefill=9..9 is not within 0..6"
    ended = await baton("scale", "prefill=9", "-e", router.address)
    assert (ended.code, ended.stdout) == (1, "")
    assert "prefill=9..9 is not within 0..6" in ended.stderr


async def test_the_summary_is_one_line_for_each_pool(baton: Baton, router: StubRouter) -> None:
    ended = await baton("autoscale", "show", "-e", router.address)
    header, prefill, decode = ended.stdout.splitlines()
    assert header.split() == ["POOL", "SIZE", "RUNNING", "BOUNDS", "CHANGED", "BECAUSE"]
    assert prefill.split()[:5] == ["prefill", "3", "2", "2..6", "(ordered)"]
    assert decode.split()[:4] == ["decode", "2", "2", "fixed"]


async def test_the_explanation_has_inputs_needs_limits_and_changes(baton: Baton, router: StubRouter) -> None:
    ended = await baton("autoscale", "explain", "-e", router.address)
    told = " ".join(ended.stdout.split())
    for words in ("tokens/s of a worker unknown", "prefill flow 2.6", "prefill budget 3 the budget of 6", "2 -> 3"):
        assert words in told


async def test_documents_are_the_same_in_json_and_yaml_and_what_is_not_known_is_null(
    baton: Baton, router: StubRouter
) -> None:
    told = json.loads((await baton("autoscale", "explain", "-o", "json", "-e", router.address)).stdout)
    assert (told["apiVersion"], told["kind"], told["budget"]) == ("baton/v1", "Autoscaling", 6.0)
    prefill = told["pools"][0]
    assert prefill["inputs"] == {"arriving tokens/s": 1820.5, "tokens/s of a worker": None}
    assert prefill["changes"][0]["at"] == "2023-11-14T22:13:20.000Z"
    assert yaml.safe_load((await baton("autoscale", "explain", "-o", "yaml", "-e", router.address)).stdout) == told


def test_a_pool_of_a_newer_version_is_named_by_its_number() -> None:
    report = sized()
    report.pools[0].role = 99  # type: ignore[assignment]
    assert [pool.pool for pool in autoscaling(report).pools] == ["unknown-99", "decode"]


async def test_a_pause_gives_its_reason_and_resuming_ends_it(baton: Baton, router: StubRouter) -> None:
    paused = json.loads(
        (await baton("autoscale", "pause", "--reason", "audit", "-o", "json", "-e", router.address)).stdout
    )
    assert (paused["paused"], paused["pauseReason"]) == (True, "audit")
    await baton("autoscale", "resume", "-e", router.address)
    asked = admin_pb2.PauseAutoscaleRequest
    assert router.paused == [asked(reason="audit"), asked(resume=True)]


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_router_every_verb_says_so(baton: Baton, verb: tuple[str, ...]) -> None:
    ended = await baton("autoscale", *verb, "-e", "127.0.0.1:1")
    assert (ended.code, ended.stdout) == (7, "")
    assert "cannot connect" in ended.stderr


@pytest.mark.parametrize("verb", VERBS)
async def test_a_wrong_token_ends_every_verb_as_not_allowed(
    baton: Baton, router: StubRouter, verb: tuple[str, ...]
) -> None:
    router.refusal = grpc.StatusCode.UNAUTHENTICATED, "no such token"
    assert (await baton("autoscale", *verb, "-e", router.address)).code == 5


async def test_a_router_that_is_silent_is_not_waited_for_longer_than_allowed(baton: Baton, router: StubRouter) -> None:
    router.silent = True
    assert (await baton("scale", "prefill=2", "--timeout", "0.2", "-e", router.address)).code == 124
