"""`baton explain`: the router's reasons as a stable document, or as tables."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter


async def test_json_holds_candidates_with_their_costs_and_what_happened(baton: Baton, router: StubRouter) -> None:
    ended = await baton("explain", "cmpl-1", "-e", router.address, "-o", "json")
    document = json.loads(ended.stdout)
    assert (ended.code, ended.stderr) == (0, "")
    assert (document["kind"], document["request"], document["outcome"]) == ("Explanation", "cmpl-1", "completed")
    assert document["predicted"] == {"ttftS": 0.25, "itlS": None}
    assert (document["cachedTokensPredicted"], document["cachedTokensActual"]) == (64, None)
    assert document["decisions"] == [
        {
            "question": "prefill",
            "atS": 0.0,
            "chosen": "p1",
            "runnerUp": "p2",
            "because": "the least predicted time",
            "candidates": [
                {"worker": "p1", "totalS": 0.25, "costs": {"prefill": 0.25}},
                {"worker": "p2", "totalS": 0.5, "costs": {"queue": 0.5}},
            ],
            "leftOut": 3,
        }
    ]
    assert [(rung["transport"], rung["outcome"], rung["blocks"]) for rung in document["rungs"]] == [
        ("grpc", "landed", 10)
    ]
    assert [rung["attempt"] for rung in document["rungs"]] == ["cmpl-1/decode3"]
    assert document["arrivedAt"] == "2023-11-14T22:13:20.000Z"
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["failed", "completed"]


async def test_tables_name_the_reason_and_every_candidate(baton: Baton, router: StubRouter) -> None:
    ended = await baton("explain", "cmpl-1", "-e", router.address)
    assert ended.code == 0
    for words in (
        "the least predicted time",
        "queue=500ms",
        "prefill=250ms",
        "worker broke",
        "unknown (predicted 64)",
        "1048576",
    ):
        assert words in ended.stdout


async def test_a_request_that_nobody_knows_is_not_found(baton: Baton, router: StubRouter) -> None:
    router.refusal = (grpc.StatusCode.NOT_FOUND, "request r is in no journal")
    ended = await baton("explain", "r", "-e", router.address)
    assert (ended.code, ended.stdout) == (4, "")
    assert "is in no journal" in ended.stderr


async def test_a_prompt_file_is_asked_about_and_not_sent(baton: Baton, router: StubRouter, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Once upon a time")
    ended = await baton("explain", "--prompt-file", str(prompt), "--session", "talk", "-e", router.address)
    assert ended.code == 0
    assert "the least predicted time" in ended.stdout
    (asked,) = router.explained
    assert (asked.dry_run.text, asked.dry_run.session_id, asked.dry_run.max_tokens) == ("Once upon a time", "talk", 256)
    assert router.asked == []


async def test_a_prompt_that_is_no_text_is_refused(baton: Baton, router: StubRouter, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(b"caf\xe9")
    for given, stdin in ((str(prompt), None), ("-", b"caf\xe9")):
        ended = await baton("explain", "--prompt-file", given, "-e", router.address, stdin=stdin)
        assert (ended.code, ended.stdout, router.explained) == (2, "", [])
        assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("given", [[], ["cmpl-1", "--prompt-file", "-"], ["--prompt-file", "no-such-file"]])
async def test_neither_both_or_an_unreadable_file_are_refused(
    baton: Baton, router: StubRouter, given: list[str]
) -> None:
    ended = await baton("explain", *given, "-e", router.address)
    assert (ended.code, ended.stdout, router.explained) == (2, "", [])
    assert "--prompt-file" in ended.stderr
