"""`baton get`, `describe` and `cache`: stable columns and keys, filters, names that are not there."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys

import pytest
import yaml

from cluster.engine import Role
from deploy.cli.filters import PoolName, RequestState, WorkerState
from deploy.cli.kinds import WORKERS
from deploy.cli.listing import ListFormat, show
from deploy.cli.status_document import Worker
from protos.baton.v1 import admin_pb2, worker_pb2
from router.generation import Outcome
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter

WAIT_S = 20.0


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("workers", "WORKER POOL STATE RUNNING WAITING QUEUED KV LEASES HEARD REASON"),
        ("pools", "POOL READY RUNNING WAITING QUEUED KV"),
        ("requests", "REQUEST STATE TENANT PROMPT CACHED OUTPUT TTFT ITL TOOK PREFILL DECODE ERROR"),
        ("transfers", "WORKER POOL TRANSPORT OUTCOME COUNT BLOCKS BYTES SECONDS"),
        ("leases", "LEASE WORKER EPOCH STATE READER BLOCKS AGE LEFT"),
        ("events", "TIME EVENT WORKER POOL REASON"),
    ],
)
async def test_columns_are_stable_and_wide_has_all_of_them_and_more(
    baton: Baton, router: StubRouter, what: str, columns: str
) -> None:
    narrow = (await baton("get", what, "-e", router.address)).stdout.splitlines()[0].split()
    wide = (await baton("get", what, "-e", router.address, "-o", "wide")).stdout.splitlines()[0].split()
    assert narrow == columns.split()
    assert [column for column in wide if column in narrow] == narrow
    assert len(wide) > len(narrow) or (what == "transfers" and "RATE" in wide)


async def test_names_are_what_other_commands_take(baton: Baton, router: StubRouter) -> None:
    async def named(what: str) -> list[str]:
        return (await baton("get", what, "-e", router.address, "-o", "name")).stdout.splitlines()

    assert await named("workers") == ["p1", "d1"]
    assert await named("pools") == ["prefill", "decode"]
    assert await named("requests") == ["chatcmpl-2", "chatcmpl-1"]
    assert await named("transfers") == ["d1/nixl/failed", "d1/nixl/landed"]
    assert await named("leases") == ["p1/0a1b2c3d"]
    assert await named("events") == ["1/joined/p1", "2/recovered/d1"]


async def test_documents_have_a_kind_and_stable_keys(baton: Baton, router: StubRouter) -> None:
    async def items(what: str) -> list[dict[str, object]]:
        document = json.loads((await baton("get", what, "-e", router.address, "-o", "json")).stdout)
        assert (document["apiVersion"], document["kind"][-4:]) == ("baton/v1", "List")
        listed: list[dict[str, object]] = document["items"]
        return listed

    assert (await items("transfers"))[1] == {
        "worker": "d1",
        "pool": "decode",
        "transport": "nixl",
        "outcome": "landed",
        "count": 3,
        "blocks": 7,
        "bytes": 7000,
        "durationS": 0.5,
    }
    assert (await items("leases"))[0] == {
        "id": "0a1b2c3d",
        "worker": "p1",
        "pool": "prefill",
        "epoch": str(2**60 + 1),
        "state": "moving",
        "reader": "d1/7",
        "blocks": 12,
        "ageS": 0.5,
        "leftS": 29.5,
        "growing": False,
    }
    running, failed = await items("requests")
    assert (running["state"], running["ttftS"], running["arrivedAt"]) == ("running", None, "2023-11-14T22:13:20.000Z")
    assert (failed["ttftS"], failed["cachedTokens"], failed["error"]) == (0.25, 4, "worker p1 broke")
    assert (await items("events"))[1] == {
        "number": 2,
        "at": "2023-11-14T22:13:21.000Z",
        "event": "recovered",
        "worker": "d1",
        "pool": "decode",
        "reason": "lost",
        "request": "r",
    }
    worker = (await items("workers"))[0]
    assert (worker["heardS"], worker["clockAheadS"], worker["version"]) == (0.25, -0.125, "0.1.0")


async def test_filters_reach_the_router_or_are_applied_here(baton: Baton, router: StubRouter) -> None:
    at = ("-e", router.address, "-o", "name")
    assert (await baton("get", "workers", "--pool", "decode", *at)).stdout == "d1\n"
    assert (await baton("get", "workers", "--state", "stalled", *at)).stdout == ""
    assert (await baton("get", "transfers", "--worker", "p1", *at)).stdout == ""
    assert (await baton("get", "leases", "--pool", "decode", *at)).stdout == ""
    assert (await baton("get", "events", "--event", "recovered", *at)).stdout == "2/recovered/d1\n"
    assert (await baton("get", "events", "--limit", "1", *at)).stdout == "2/recovered/d1\n"
    await baton("get", "requests", "--state", "failed", "--tenant", "acme", "--worker", "p1", "--limit", "7", *at)
    (asked,) = router.listed
    assert (asked.state, asked.tenant, asked.worker_id, asked.limit) == ("failed", "acme", "p1", 7)


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        (("workers", "--state", "redy"), "ready"),
        (("workers", "--pool", "prefil"), "prefill"),
        (("requests", "--state", "done"), "completed"),
        (("events", "--event", "joinde"), "joined"),
    ],
    ids=str,
)
async def test_a_value_that_can_never_be_is_answered_with_those_that_can(
    baton: Baton, router: StubRouter, arguments: tuple[str, ...], valid: str
) -> None:
    ended = await baton("get", *arguments, "-e", router.address)
    assert (ended.code, ended.stdout, f"'{valid}'" in ended.stderr) == (2, "", True)


def test_what_filters_take_is_what_there_is() -> None:
    assert {*RequestState} == {"running", *(outcome.value for outcome in Outcome)}
    told = {name.removeprefix("WORKER_STATE_").lower() for name in worker_pb2.WorkerState.keys()}  # noqa: SIM118
    assert {*WorkerState} == told - {"unspecified"} | {"unreachable"}
    assert [*PoolName] == [role.value for role in Role]


async def test_a_worker_of_which_there_is_nothing_to_tell_is_no_mistake(baton: Baton, router: StubRouter) -> None:
    idle = router.status.workers.add()
    idle.CopyFrom(router.status.workers[0])
    idle.description.worker_id = "p9"
    for what in ("requests", "events", "transfers"):
        ended = await baton("get", what, "--worker", "p9", "-o", "name", "-e", router.address)
        assert (ended.code, ended.stdout, ended.stderr) == (0, "", "")


async def test_a_worker_that_left_may_still_be_asked_for(baton: Baton, router: StubRouter) -> None:
    del router.status.workers[:]
    at = ("--worker", "d1", "-o", "name", "-e", router.address)
    assert (await baton("get", "events", *at)).stdout == "2/recovered/d1\n"
    assert (await baton("get", "events", "--event", "joined", *at)).code == 0
    assert (await baton("get", "requests", *at)).stdout == "chatcmpl-2\n"


def test_watched_yaml_is_a_stream_of_documents(capsys: pytest.CaptureFixture[str]) -> None:
    looks = 2

    def fetch() -> list[Worker]:
        nonlocal looks
        if not looks:
            raise KeyboardInterrupt
        looks -= 1
        return []

    with pytest.raises(KeyboardInterrupt):
        show(WORKERS, fetch, ListFormat.YAML, 0.0)
    assert [document["kind"] for document in yaml.safe_load_all(capsys.readouterr().out)] == ["WorkerList"] * 2


async def test_a_worker_that_cannot_tell_its_leases_is_named_on_stderr(baton: Baton, router: StubRouter) -> None:
    ended = await baton("get", "leases", "-e", router.address)
    assert (ended.code, ended.stderr) == (0, "baton: d1: no answer\n")


async def test_a_list_is_watched_until_an_interrupt(router: StubRouter) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.cli.main", "get", "workers", "-w", "-o", "name", "-e", router.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        for expected in (b"p1\n", b"d1\n") * 2:
            assert await process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (130, b"")


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (("describe", "worker", "p11"), "did you mean p1"),
        (("describe", "pool", "prefil"), "did you mean prefill?"),
        (("get", "transfers", "--worker", "p11"), "did you mean p1"),
        (("get", "requests", "--worker", "p11"), "did you mean p1"),
        (("get", "events", "--worker", "p11"), "did you mean p1"),
    ],
)
async def test_an_unknown_name_exits_4_with_the_nearest_one(
    baton: Baton, router: StubRouter, arguments: tuple[str, ...], nearest: str
) -> None:
    ended = await baton(*arguments, "-e", router.address)
    assert (ended.code, ended.stdout) == (4, "")
    assert nearest in ended.stderr


async def test_an_unknown_request_is_told_the_nearest_one_that_the_router_knows(
    baton: Baton, router: StubRouter
) -> None:
    router.forgetful = True
    ended = await baton("describe", "request", "chatcmpl-3", "-e", router.address)
    assert ended.code == 4
    assert "did you mean chatcmpl-" in ended.stderr


async def test_a_worker_is_described_with_all_that_concerns_it(baton: Baton, router: StubRouter) -> None:
    document = json.loads((await baton("describe", "worker", "p1", "-e", router.address, "-o", "json")).stdout)
    assert document["worker"]["id"] == "p1"
    assert document["cache"]["heldBlocks"] == 30
    assert [lease["id"] for lease in document["leases"]] == ["0a1b2c3d"]
    assert [event["event"] for event in document["events"]] == ["joined"]
    lines = (await baton("describe", "worker", "p1", "-e", router.address)).stdout.splitlines()
    assert any(line.startswith("clock ") and "-125ms before the router's" in line for line in lines)


async def test_a_request_is_described_with_its_decisions(baton: Baton, router: StubRouter) -> None:
    document = json.loads((await baton("describe", "request", "chatcmpl-1", "-e", router.address, "-o", "json")).stdout)
    assert document["request"]["state"] == "failed"
    assert document["explanation"]["decisions"][0]["chosen"] == "p1"


async def test_the_hit_rate_and_what_workers_hold_are_shown(baton: Baton, router: StubRouter) -> None:
    document = json.loads((await baton("cache", "stats", "-e", router.address, "-o", "json")).stdout)
    assert (document["hitRate"], document["indexBlocks"]) == (0.25, 40)
    assert [worker["heldBlocks"] for worker in document["workers"]] == [30, 10]


async def test_a_flush_wants_a_yes_without_a_terminal(baton: Baton, router: StubRouter) -> None:
    ended = await baton("cache", "flush", "-e", router.address)
    assert (ended.code, router.flushes) == (2, [])
    assert "Empty the prefix caches of all workers? Nobody can be asked here: say --yes" in ended.stderr
    both = await baton("cache", "flush", "--worker", "p1", "--pool", "decode", "--yes", "-e", router.address)
    assert (both.code, router.flushes) == (2, [])


async def test_a_flush_that_a_busy_worker_refused_exits_6_and_names_it(baton: Baton, router: StubRouter) -> None:
    role = worker_pb2.ROLE_DECODE
    router.flushed = [
        admin_pb2.WorkerFlush(worker_id="d1", role=role, flushed=True),
        admin_pb2.WorkerFlush(worker_id="d2", role=role, reason="in use"),
    ]
    ended = await baton("cache", "flush", "--pool", "decode", "--yes", "-e", router.address)
    assert (ended.code, ended.stderr) == (6, "baton: not flushed: d2\n")
    assert [asked.role for asked in router.flushes] == [role]


async def test_top_prints_once_and_sorts(baton: Baton, router: StubRouter) -> None:
    router.status.workers[1].description.load.queued_prefill_tokens = 900
    by_load = (await baton("top", "--once", "-e", router.address)).stdout
    by_ttft = (await baton("top", "--once", "--sort", "ttft", "-e", router.address)).stdout
    rows = [
        [line.split()[0] for line in told.splitlines() if line.startswith(("p1", "d1"))] for told in (by_load, by_ttft)
    ]
    assert rows == [["d1", "p1"], ["p1", "d1"]]
    assert "250ms" in by_ttft


async def test_top_draws_on_a_terminal_until_q(router: StubRouter) -> None:
    screen, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.cli.main", "top", "--every", "0.2", "-e", router.address),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
    )
    os.close(theirs)
    seen = ""
    try:
        async with asyncio.timeout(WAIT_S):
            while "sorted by load" not in seen or "p1" not in seen:
                seen += (await asyncio.to_thread(os.read, screen, 65_536)).decode(errors="replace")
            os.write(screen, b"t")
            while "sorted by ttft" not in seen:
                seen += (await asyncio.to_thread(os.read, screen, 65_536)).decode(errors="replace")
            os.write(screen, b"q")
            assert await process.wait() == 0
    finally:
        os.close(screen)


async def test_top_without_a_terminal_says_what_to_do(baton: Baton, router: StubRouter) -> None:
    ended = await baton("top", "-e", router.address)
    assert (ended.code, "--once" in ended.stderr) == (2, True)
