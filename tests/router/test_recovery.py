"""Every step of the ladder of failures: what is tried next, what it costs the request, and where it ends."""

from __future__ import annotations

import pytest

from cluster.engine import FinishReason, Leg, Role, Sampling, TokenLogprobs
from cluster.errors import DeadlineExceeded, EngineFailed, RetriesSpent, WorkersLost
from router.actions import Cancel, End, Ending, Later, Release, Settle
from router.generation import Outcome
from tests.router.test_pipeline import LOST, PROMPT, Walk, legs


def endings(walk: Walk) -> list[Ending]:
    return [settle.ending for settle in walk.of(Settle)]


def test_after_an_error_the_request_waits_and_then_goes_to_another_worker() -> None:
    walk = Walk()
    settle, later = walk.gives_up()
    assert isinstance(settle, Settle)
    assert (settle.ending, settle.blamed) == (Ending.FAILED, True)
    assert settle.reason == "worker p1 failed the request: out of memory"
    assert later == Later(0.1)
    walk.retried()
    assert legs(walk)[-1] == ("p2", Leg.PREFILL)
    assert walk.pipeline.on_retry() == []


def test_a_worker_that_is_not_ready_costs_neither_time_nor_blame() -> None:
    walk = Walk()
    settle, _ = walk.gives_up(FinishReason.MOVED, "worker p1 is draining")
    assert isinstance(settle, Settle)
    assert (settle.ending, settle.blamed) == (Ending.MOVED, False)
    assert walk.worker == "p2"
    walk.gives_up(FinishReason.MOVED)
    assert legs(walk)[-1] == ("d1", Leg.WHOLE), "p1 is not asked again"


def test_however_many_workers_do_not_want_it_none_counts_against_the_request() -> None:
    walk = Walk(prefill=" ".join(f"p{i}" for i in range(20)), attempts_most=2, retry_s=None)
    for _ in range(20):
        walk.gives_up(FinishReason.MOVED)
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)


@pytest.mark.parametrize("why", ["engine died", "session broke", "stalled"])
def test_a_request_under_which_worker_after_worker_is_lost_is_stopped(why: str) -> None:
    walk = Walk(prefill=" ".join(f"p{i}" for i in range(50)), retry_s=None)
    for _ in range(3):
        match why:
            case "engine died":
                walk.gives_up(FinishReason.LOST)
            case "session broke":
                walk.take(walk.pipeline.on_worker_lost(walk.worker, LOST))
            case "stalled":
                walk.take(walk.pipeline.on_worker_lost(walk.worker, LOST, Ending.STALLED))
    assert len(legs(walk)) == 3
    assert isinstance(walk.emissions[-1].error, WorkersLost)
    assert walk.ended() is Outcome.FAILED


def test_a_stream_that_gets_on_between_its_losses_is_no_poison_but_even_that_has_an_end() -> None:
    walk = Walk(max_tokens=100, prefill="p1", decode=" ".join(f"d{i}" for i in range(50)), retry_s=None)
    walk.prefilled(0)
    for token in range(1, 6):
        walk.answer(token)
        walk.take(walk.pipeline.on_worker_lost(walk.worker, LOST))
        assert walk.of(End) == []
    walk.answer(6)
    walk.take(walk.pipeline.on_worker_lost(walk.worker, LOST))
    assert walk.tokens == list(range(7))
    assert walk.emissions[-1].error is LOST
    assert walk.ended() is Outcome.FAILED


def test_a_stream_under_which_three_workers_go_without_a_token_between_is_stopped() -> None:
    walk = Walk(max_tokens=100, prefill="p1", decode=" ".join(f"d{i}" for i in range(50)), attempts_most=50)
    walk.prefilled(0)
    walk.answer(1)
    for _ in range(3):
        assert walk.of(End) == []
        walk.take(walk.pipeline.on_worker_lost(walk.worker, LOST))
    assert isinstance(walk.emissions[-1].error, WorkersLost)
    assert walk.tokens == [0, 1]


def test_errors_end_a_request_at_its_limit() -> None:
    walk = Walk(prefill=" ".join(f"p{i}" for i in range(50)), attempts_most=4)
    for _ in range(3):
        walk.gives_up()
        walk.retried()
    walk.gives_up()
    assert len(legs(walk)) == 4
    assert isinstance(walk.emissions[-1].error, EngineFailed)
    assert walk.ended() is Outcome.FAILED


def test_without_a_retry_left_in_the_router_the_client_hears_the_first_cause_and_to_come_again() -> None:
    walk = Walk()
    walk.gives_up(error="out of memory")
    walk.retried()
    walk.retry_s = None
    walk.gives_up(error="something else")
    error = walk.emissions[-1].error
    assert isinstance(error, RetriesSpent)
    assert "out of memory" in str(error)
    assert walk.ended() is Outcome.FAILED


def test_moves_off_lost_and_stalled_workers_need_no_retry() -> None:
    walk = Walk(retry_s=None)
    walk.take(walk.pipeline.on_worker_lost("p1", LOST))
    walk.take(walk.pipeline.on_worker_lost("p2", LOST, Ending.STALLED))
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)


def test_a_late_prefill_is_a_retry_but_has_waited_enough() -> None:
    walk = Walk()
    walk.take(walk.pipeline.on_attempt_late(walk.submitted.attempt_id, DeadlineExceeded("late")))
    assert legs(walk)[-1] == ("p2", Leg.PREFILL)
    walk.retry_s = None
    walk.take(walk.pipeline.on_attempt_late(walk.submitted.attempt_id, DeadlineExceeded("late")))
    assert isinstance(walk.emissions[-1].error, RetriesSpent)


def test_a_stalled_worker_still_hears_that_it_is_to_stop_and_a_dead_one_need_not() -> None:
    walk = Walk()
    stalled = walk.submitted.attempt_id
    walk.take(walk.pipeline.on_worker_lost("p1", LOST, Ending.STALLED))
    assert walk.of(Cancel) == [Cancel("p1", stalled)]
    walk.take(walk.pipeline.on_worker_lost("p2", LOST))
    assert len(walk.of(Cancel)) == 1
    assert endings(walk) == [Ending.STALLED, Ending.LOST]


def test_an_answer_that_makes_no_sense_is_its_workers_failure_and_the_attempt_is_stopped_there() -> None:
    walk = Walk()
    garbled = walk.submitted.attempt_id
    settle, cancel, later = walk.take(walk.pipeline.on_unreadable(garbled, EngineFailed("nonsense")))
    assert isinstance(settle, Settle)
    assert (settle.ending, settle.blamed) == (Ending.FAILED, True)
    assert (cancel, later) == (Cancel("p1", garbled), Later(0.1))
    walk.retried()
    assert legs(walk)[-1] == ("p2", Leg.PREFILL)
    assert walk.pipeline.on_unreadable(garbled, EngineFailed("nonsense")) == []


def test_a_lost_worker_that_is_back_is_better_than_none() -> None:
    walk = Walk(prefill="p1", decode="d1", max_tokens=9)
    walk.prefilled(40)
    walk.answer(41)
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert legs(walk)[-1] == ("p1", Leg.WHOLE)
    walk.answer(42)
    walk.workers[Role.DECODE] = ["d1"]  # as it always was, in this walk: it came back at once
    walk.take(walk.pipeline.on_worker_lost("p1", LOST))
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)
    assert walk.submitted.prompt_token_ids == [*PROMPT, 40, 41, 42]


def test_a_worker_that_failed_the_request_is_not_asked_again_however_few_are_left() -> None:
    walk = Walk(prefill="p1", decode="")
    walk.gives_up()
    walk.retried()
    assert walk.ended() is Outcome.FAILED


def test_a_refused_ticket_is_no_retry_and_an_error_in_mid_stream_is_one() -> None:
    walk = Walk()
    walk.prefilled(40)
    walk.gives_up(error="ticket refused")
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)
    walk.answer(41)
    walk.gives_up()
    walk.retried()
    assert legs(walk)[-1] == ("d2", Leg.WHOLE)
    assert walk.submitted.prompt_token_ids == [*PROMPT, 40, 41]


@pytest.mark.parametrize("lost", [True, False])
def test_prefill_workers_can_be_kept_from_decoding(lost: bool) -> None:
    walk = Walk(decode="d1" if lost else "", prefill_may_decode=False)
    walk.prefilled(40)
    if lost:
        walk.workers[Role.DECODE] = []
        walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert walk.tokens == [40]
    assert walk.ended() is Outcome.FAILED
    assert walk.of(Release) == [Release("p1", "lease-1")]


def test_prefill_workers_kept_from_decoding_still_give_the_only_token() -> None:
    assert legs(Walk(max_tokens=1, decode="", prefill_may_decode=False)) == [("p1", Leg.WHOLE)]


def test_a_request_that_waits_for_its_retry_can_be_cancelled_and_can_run_out_of_time() -> None:
    walk = Walk()
    walk.gives_up()
    assert walk.take(walk.pipeline.cancel(Outcome.CANCELLED)) == [End(Outcome.CANCELLED)]
    assert walk.pipeline.on_retry() == []
    late = Walk()
    late.gives_up()
    late.take(late.pipeline.fail(DeadlineExceeded("too long")))
    assert late.ended() is Outcome.FAILED
    assert late.pipeline.on_retry() == []


def test_logprobs_go_on_at_the_seam() -> None:
    walk = Walk(max_tokens=4)
    walk.prefilled(40, logprobs=(TokenLogprobs((40, 1), (-0.1, -2.0), 1),))
    walk.answer(41, logprobs=(TokenLogprobs((41, 1), (-0.2, -2.0), 1),))
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert walk.submitted.sampling == Sampling(max_tokens=2, logprobs=2)
    walk.answer(42, 43, finish_reason=FinishReason.LENGTH, logprobs=(TokenLogprobs((42,), (-0.3,), 1),) * 2)
    assert sum(len(emission.logprobs) for emission in walk.emissions) == len(walk.tokens) == 4
