"""`baton status`: stable documents on stdout, the cluster's health in the exit code."""

from __future__ import annotations

import json
import socket

import grpc
import pytest
import yaml

from protos.baton.v1 import admin_pb2, worker_pb2
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter, serving


async def test_json_holds_pools_workers_and_counters(baton: Baton, router: StubRouter) -> None:
    ended = await baton("status", "-e", router.address, "-o", "json")
    document = json.loads(ended.stdout)
    assert (ended.code, ended.stderr) == (0, "")
    assert (document["apiVersion"], document["kind"]) == ("baton/v1", "ClusterStatus")
    assert document["router"] == {"id": "router-1", "version": "0.1.0", "model": "demo", "inFlight": 2, "queued": 1}
    assert document["store"] == {
        "degraded": True,
        "degradedS": 1.5,
        "reason": "gone",
        "routers": 2,
        "droppedWrites": 3,
    }
    assert document["pools"] == [
        {"pool": "prefill", "ready": 1, "total": 1, "wanted": None},
        {"pool": "decode", "ready": 1, "total": 1, "wanted": None},
    ]
    prefill, decode = document["workers"]
    assert (prefill["id"], prefill["pool"], prefill["state"]) == ("p1", "prefill", "ready")
    assert prefill["epoch"] == "1152921504606846977"
    assert prefill["load"] == {"running": 1, "waiting": 0, "queuedPrefillTokens": 300, "kvUsage": 0.25, "leases": 1}
    assert decode["attempts"] == {"finished": 4}
    assert document["counters"] == {
        "requests": {"cancelled": 1, "finished": 4},
        "recoveries": {"error": 1, "stalled": 2},
        "retriesRefused": 3,
        "slowWorkers": 1,
        "disaggregated": 4,
        "whole": 1,
        "kvTransfers": [
            {"transport": "nixl", "outcome": "failed", "count": 1, "blocks": 0, "bytes": 0, "durationS": 0.0},
            {"transport": "nixl", "outcome": "landed", "count": 3, "blocks": 7, "bytes": 7000, "durationS": 0.5},
        ],
        "blocksMoved": 7,
        "bytesMoved": 7000,
        "blocksSent": 7,
        "bytesSent": 7000,
        "recomputedRequests": 1,
        "leasesLive": 1,
        "leasesOffered": 4,
        "leasesReleased": 3,
        "leasesExpired": 0,
        "pinnedBlocks": 2,
    }


async def test_transfers_are_summed_over_workers(baton: Baton, router: StubRouter) -> None:
    router.status.workers.append(router.status.workers[1])
    document = json.loads((await baton("status", "-e", router.address, "-o", "json")).stdout)
    assert document["counters"]["blocksMoved"] == 14
    assert [each["count"] for each in document["counters"]["kvTransfers"]] == [2, 6]


async def test_yaml_is_the_same_document(baton: Baton, router: StubRouter) -> None:
    as_json = await baton("status", "-e", router.address, "-o", "json")
    as_yaml = await baton("status", "-e", router.address, "-o", "yaml")
    assert yaml.safe_load(as_yaml.stdout) == json.loads(as_json.stdout)


async def test_the_table_is_plain_when_piped(baton: Baton, router: StubRouter) -> None:
    lines = (await baton("status", "-e", router.address)).stdout.splitlines()
    assert lines[:3] == ["POOL     READY", "prefill  1/1", "decode   1/1"]
    assert "nixl       landed   3      7       7000" in lines
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("role", [worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE])
async def test_a_pool_without_a_ready_worker_is_degraded(
    baton: Baton, router: StubRouter, role: worker_pb2.Role.ValueType
) -> None:
    for pool in router.status.pools:
        pool.ready = 0 if pool.role == role else 1
    ended = await baton("status", "-e", router.address, "-o", "json")
    name = worker_pb2.Role.Name(role).removeprefix("ROLE_").lower()
    assert (ended.code, ended.stderr) == (3, f"baton: no ready worker: {name}\n")
    assert json.loads(ended.stdout)["kind"] == "ClusterStatus"


async def test_a_pool_of_which_none_is_wanted_is_not_degraded(baton: Baton, router: StubRouter) -> None:
    prefill = router.status.pools[0]
    prefill.ready = prefill.total = prefill.wanted = 0
    ended = await baton("status", "-e", router.address)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[:3] == ["POOL     READY", "prefill  0/0, none wanted", "decode   1/1"]
    prefill.wanted = 1
    ended = await baton("status", "-e", router.address)
    assert (ended.code, ended.stderr) == (3, "baton: no ready worker: prefill\n")


async def test_a_pool_that_is_not_there_is_degraded(baton: Baton, router: StubRouter) -> None:
    del router.status.pools[1]
    ended = await baton("status", "-e", router.address)
    assert (ended.code, ended.stderr) == (3, "baton: no ready worker: decode\n")


async def test_a_worker_that_did_not_answer_says_why(baton: Baton, router: StubRouter) -> None:
    router.status.workers.append(admin_pb2.WorkerStatus(address="127.0.0.1:1", unreachable="connection refused"))
    ended = await baton("status", "-e", router.address)
    row = next(line for line in ended.stdout.splitlines() if "127.0.0.1:1 " in line)
    assert "unreachable" in row
    assert row.endswith("connection refused")


async def test_a_state_of_a_newer_version_is_shown_by_its_number(baton: Baton, router: StubRouter) -> None:
    router.status.workers[0].description.state = 99  # type: ignore[assignment]
    ended = await baton("status", "-e", router.address)
    assert (ended.code, "unknown-99" in ended.stdout) == (0, True)


async def test_nobody_there_is_unreachable(baton: Baton, router: StubRouter) -> None:
    async with serving(StubRouter()) as gone:
        address = gone.address
    ended = await baton("status", "-e", address)
    assert ended.code == 7
    assert ended.stderr.startswith(f"baton: {address}: cannot connect: Connection refused; ")
    assert ended.stdout == ""


async def test_a_name_that_no_host_can_have_is_unreachable(baton: Baton) -> None:
    ended = await baton("status", "-e", "a..b:9000")
    assert (ended.code, ended.stderr.count("\n")) == (7, 1)


async def test_a_host_that_swallows_connections_is_unreachable(baton: Baton) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address, 1):  # the only place in its queue
            ended = await baton("status", "-e", f"127.0.0.1:{address[1]}", "--timeout", "0.3")
    assert (ended.code, "cannot connect: no answer within 0.3 s" in ended.stderr) == (7, True)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", ":9000", "127.0.0.1:http", "127.0.0.1:99999"])
async def test_an_address_that_is_none_is_a_usage_error(baton: Baton, address: str) -> None:
    ended = await baton("status", "-e", address)
    assert (ended.code, ended.stderr) == (
        2,
        f"baton: --endpoint {address}: expected HOST:PORT, such as 127.0.0.1:9000\n",
    )


async def test_a_router_that_does_not_answer_times_out(baton: Baton, router: StubRouter) -> None:
    router.silent = True
    ended = await baton("status", "-e", router.address, "--timeout", "0.3")
    assert ended.code == 124
    assert ended.stderr == f"baton: {router.address}: no answer within 0.3 s; --timeout allows more\n"


async def test_another_service_is_not_taken_for_a_router(baton: Baton) -> None:
    async with serving(StubRouter(), admin=False) as other:
        ended = await baton("status", "-e", other.address)
    assert ended.code == 4
    assert "is not a Baton router" in ended.stderr


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(grpc.StatusCode.UNAVAILABLE, 7), (grpc.StatusCode.PERMISSION_DENIED, 5), (grpc.StatusCode.INTERNAL, 1)],
)
async def test_a_refusal_keeps_the_routers_reason(
    baton: Baton, router: StubRouter, code: grpc.StatusCode, exit_code: int
) -> None:
    router.refusal = (code, "because")
    ended = await baton("status", "-e", router.address)
    assert (ended.code, ended.stderr.count("\n"), "because" in ended.stderr) == (exit_code, 1, True)
