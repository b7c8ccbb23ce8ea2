"""A request whose worker leaves: it goes on elsewhere, and nobody is to blame."""

from __future__ import annotations

from typing import Any

from cluster.engine import EngineOutput, FinishReason, Leg
from cluster.errors import WorkerLost
from router.actions import Cancel, Ending, Release, Settle, Submit
from router.generation import Outcome
from router.recovery import RecoveryRules
from tests.router.test_pipeline import PROMPT, Walk, legs, ticket

MOVED: dict[str, Any] = {"finish_reason": FinishReason.MOVED, "error": "the worker drains: new disk"}


def test_a_stream_goes_on_behind_its_last_token() -> None:
    walk = Walk(max_tokens=5)
    walk.prefilled(40)
    walk.answer(41)
    walk.answer(**MOVED)
    assert legs(walk)[-1] == ("d2", Leg.WHOLE)
    assert walk.submitted.prompt_token_ids == [*PROMPT, 40, 41]
    assert not any(settle.blamed for settle in walk.of(Settle))
    assert walk.of(Cancel) == []  # the worker has ended it already
    walk.answer(42, 43, 44, finish_reason=FinishReason.LENGTH)
    assert walk.tokens == [40, 41, 42, 43, 44]


def test_a_prefill_worker_that_leaves_is_replaced() -> None:
    walk = Walk()
    walk.answer(**MOVED)
    assert legs(walk) == [("p1", Leg.PREFILL), ("p2", Leg.PREFILL)]


def test_blocks_that_a_decode_worker_will_not_read_wait_for_the_next_one() -> None:
    walk = Walk()
    walk.prefilled()
    walk.answer(**MOVED)
    assert legs(walk)[-1] == ("d2", Leg.DECODE)
    assert walk.submitted.ticket == ticket()
    walk.answer(41, 42, 43, finish_reason=FinishReason.LENGTH)
    assert walk.of(Release) == []
    assert walk.pipeline.handed_over


def test_blocks_that_no_decode_worker_will_read_are_released_once() -> None:
    walk = Walk(decode="d1")
    walk.prefilled()
    walk.answer(**MOVED)
    assert legs(walk)[-1] == ("p1", Leg.WHOLE)
    assert walk.of(Release) == [Release("p1", "lease-1")]


def test_a_prefetch_that_is_moved_has_not_landed() -> None:
    walk = Walk(pipelining=True)
    prefill, prefetch = (submit.request for submit in walk.of(Submit))
    walk.take(walk.pipeline.on_output("d1", EngineOutput(prefetch.attempt_id, [], **MOVED)))
    token = EngineOutput(prefill.attempt_id, [40], finish_reason=FinishReason.LENGTH, ticket=ticket())
    walk.take(walk.pipeline.on_output("p1", token))
    assert walk.submitted.leg is Leg.DECODE
    assert walk.submitted.after_attempt_id == ""
    settled = [settle.ending for settle in walk.of(Settle) if settle.attempt_id == prefetch.attempt_id]
    assert settled == [Ending.FAILED]


def test_moves_do_not_count_as_failed_attempts_and_end_with_the_last_worker() -> None:
    count = 3 * RecoveryRules().attempts_most
    walk = Walk(prefill="", decode=" ".join(f"d{i}" for i in range(count)))
    for _ in range(count):
        walk.answer(**MOVED)
    assert len(legs(walk)) == count
    error = walk.emissions[-1].error
    assert isinstance(error, WorkerLost)
    assert "does not go on with the request: the worker drains: new disk" in str(error)
    assert walk.ended() is Outcome.FAILED
