"""A prefetch beside a prefill: where it runs, who waits for it, and how it is settled, once, in every case."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PrefillInProgress
from cluster.errors import DeadlineExceeded, EngineFailed, WorkerLost
from router.actions import Action, Cancel, Release, Settle, Submit
from router.generation import Outcome
from router.sampling_state import NO_HISTORY, SamplingFacts
from tests.router.test_pipeline import LOST, PROMPT, SEEDED, Walk, legs, ticket

PREFETCH = "r/prefetch1"


class PipelinedWalk(Walk):
    """The live attempt is the last one submitted that is no prefetch."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(pipelining=True, **fields)

    @property
    def _last(self) -> Submit:
        last: Submit = [submit for submit in self.of(Submit) if submit.request.leg is not Leg.PREFETCH][-1]
        return last

    @property
    def submitted(self) -> EngineRequest:
        return self._last.request

    @property
    def worker(self) -> str:
        return self._last.worker_id

    def prefetched(self, reason: FinishReason = FinishReason.LENGTH, worker: str = "d1") -> list[Action]:
        return self.take(self.pipeline.on_output(worker, EngineOutput(PREFETCH, [7], finish_reason=reason)))

    def settled_once(self) -> None:
        submitted = [(action.worker_id, action.request.attempt_id) for action in self.of(Submit)]
        settled = [(action.worker_id, action.attempt_id) for action in self.of(Settle)]
        assert sorted(submitted) == sorted(settled)


@pytest.mark.parametrize("facts", [NO_HISTORY, SEEDED])
def test_a_prefetch_runs_where_decode_will_and_decode_waits_for_it(facts: SamplingFacts) -> None:
    walk = PipelinedWalk(facts=facts)
    assert legs(walk) == [("p1", Leg.PREFILL), ("d1", Leg.PREFETCH)]
    prefetch = walk.of(Submit)[1].request
    assert prefetch.prompt_token_ids == PROMPT
    assert prefetch.follow == PrefillInProgress("source of p1", 7, walk.submitted.attempt_id)
    walk.workers[next(iter(walk.workers))].reverse()
    walk.prefilled(40)
    assert (walk.worker, walk.submitted.leg, walk.submitted.after_attempt_id) == ("d1", Leg.DECODE, PREFETCH)
    assert walk.prefetched() == [Settle("d1", PREFETCH)]
    while not walk.pipeline.ended:
        last = walk.pipeline.remaining == 1
        walk.answer(41, finish_reason=FinishReason.LENGTH if last else None)
    assert walk.of(Cancel) == []
    walk.settled_once()


def test_a_prefetch_that_is_there_before_its_prefill_ends_only_says_where_to_go() -> None:
    walk = PipelinedWalk(decode="d1 d2")
    walk.prefetched()
    walk.workers = {role: list(reversed(names)) for role, names in walk.workers.items()}
    walk.prefilled(40)
    assert (walk.worker, walk.submitted.after_attempt_id) == ("d1", "")


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT, FinishReason.MOVED, FinishReason.LOST])
def test_a_prefetch_that_failed_changes_nothing(reason: FinishReason) -> None:
    walk = PipelinedWalk()
    assert walk.prefetched(reason) == [Settle("d1", PREFETCH)]
    walk.workers = {role: list(reversed(names)) for role, names in walk.workers.items()}
    walk.prefilled(40)
    assert (walk.worker, walk.submitted.after_attempt_id) == ("d2", ""), "chosen as without a prefetch"
    assert walk.emissions[-1].error is None


def test_a_prefetch_whose_answer_makes_no_sense_is_stopped_and_changes_nothing() -> None:
    walk = PipelinedWalk()
    stopped = walk.take(walk.pipeline.on_unreadable(PREFETCH, EngineFailed("nonsense")))
    assert stopped == [Settle("d1", PREFETCH), Cancel("d1", PREFETCH)]
    walk.prefilled(40)
    assert (walk.submitted.leg, walk.submitted.after_attempt_id) == (Leg.DECODE, "")
    assert walk.emissions[-1].error is None


def test_a_prefetch_whose_worker_went_away_changes_nothing() -> None:
    walk = PipelinedWalk()
    assert walk.take(walk.pipeline.on_worker_lost("d1", LOST)) == [Settle("d1", PREFETCH)]
    walk.prefilled(40)
    assert (walk.worker, walk.submitted.leg, walk.submitted.after_attempt_id) == ("d1", Leg.DECODE, "")


def test_a_prefetch_is_cancelled_when_decode_has_to_run_elsewhere() -> None:
    walk = PipelinedWalk()
    walk.workers = {role: [name for name in names if name != "d1"] for role, names in walk.workers.items()}
    actions = walk.prefilled(40)
    assert (walk.worker, walk.submitted.after_attempt_id) == ("d2", "")
    assert [action for action in actions if isinstance(action, Cancel)] == [Cancel("d1", PREFETCH)]


def test_a_prefetch_that_has_not_ended_when_decode_speaks_is_cancelled() -> None:
    walk = PipelinedWalk()
    walk.prefilled(40)
    actions = walk.answer(41)
    assert actions[:2] == [Settle("d1", PREFETCH), Cancel("d1", PREFETCH)]
    assert walk.prefetched() == [], "its answer comes too late to matter"


@pytest.mark.parametrize("event", ["lost", "late"])
def test_another_prefill_gets_another_prefetch(event: str) -> None:
    walk = PipelinedWalk()
    first = walk.submitted.attempt_id
    if event == "lost":
        walk.take(walk.pipeline.on_worker_lost("p1", LOST))
    else:
        walk.take(walk.pipeline.on_attempt_late(first, DeadlineExceeded("prefill")))
    assert Cancel("d1", PREFETCH) in walk.actions
    assert legs(walk)[2:] == [("p2", Leg.PREFILL), ("d1", Leg.PREFETCH)]
    assert walk.of(Submit)[-1].request.follow.attempt_id == walk.submitted.attempt_id != first


def test_a_refused_decode_leg_is_done_again_where_the_blocks_are() -> None:
    walk = PipelinedWalk()
    walk.prefetched()
    walk.prefilled(40)
    walk.workers = {role: list(reversed(names)) for role, names in walk.workers.items()}
    walk.answer(finish_reason=FinishReason.ERROR, error="ticket refused")
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)


@pytest.mark.parametrize("how", ["stopped", "cancelled", "late", "nobody left"])
def test_however_a_request_ends_its_prefetch_is_settled_and_cancelled(how: str) -> None:
    walk = PipelinedWalk()
    match how:
        case "stopped":
            walk.prefilled(40, finish_reason=FinishReason.STOP)
        case "cancelled":
            walk.take(walk.pipeline.cancel(Outcome.CANCELLED))
        case "late":
            walk.take(walk.pipeline.fail(DeadlineExceeded("too long")))
        case "nobody left":
            walk.workers = {role: [] for role in walk.workers}
            walk.take(walk.pipeline.on_worker_lost("p1", LOST))
    walk.ended()
    assert Cancel("d1", PREFETCH) in walk.actions
    walk.settled_once()


def test_one_token_and_no_decode_worker_need_no_prefetch() -> None:
    assert legs(PipelinedWalk(max_tokens=1)) == [("p1", Leg.WHOLE)]
    assert legs(PipelinedWalk(decode="")) == [("p1", Leg.PREFILL)]
    assert legs(PipelinedWalk(prefill="")) == [("d1", Leg.WHOLE)]


def test_a_ticket_of_a_lost_request_still_goes_back() -> None:
    walk = PipelinedWalk()
    old = EngineOutput(walk.submitted.attempt_id, [9], finish_reason=FinishReason.LENGTH, ticket=ticket("late"))
    walk.take(walk.pipeline.on_worker_lost("p1", WorkerLost("gone")))
    assert walk.pipeline.on_output("p1", old) == [Release("p1", "late")]
