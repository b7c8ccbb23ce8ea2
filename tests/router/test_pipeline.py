"""The way of one request: what is tried next after every answer, loss and abort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.engine import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    Leg,
    PrefillInProgress,
    PromptOrigin,
    Role,
    Sampling,
)
from cluster.errors import DeadlineExceeded, EngineFailed, NoWorker, WorkerLost
from protos.baton.v1 import kv_pb2
from router.actions import Action, Cancel, Emit, End, Later, Release, Settle, Submit
from router.generation import Emission, GenerationRequest, Outcome
from router.pipeline import RequestPipeline
from router.pipeline_questions import PipelineRules, Questions
from router.recovery import RecoveryRules
from router.sampling_state import NO_HISTORY, SamplingFacts

PROMPT = [5, 6, 7]
SEEDED = SamplingFacts(seeded=True)
GRAMMAR = SamplingFacts(grammar=True)
LOST = WorkerLost("worker p1 broke")


def ticket(lease_id: str = "lease-1") -> bytes:
    return kv_pb2.Ticket(lease_id=lease_id).SerializeToString()


class Walk:
    """A pipeline over a fleet of names; keeps every action."""

    whole_pays = False

    def __init__(
        self,
        max_tokens: int = 4,
        facts: SamplingFacts = NO_HISTORY,
        prefill: str = "p1 p2",
        decode: str = "d1 d2",
        first_token_from_prefill: bool = True,
        pipelining: bool = False,
        retry_s: float | None = 0.1,
        **recovery: Any,
    ) -> None:
        self.pipelining = pipelining
        self.retry_s = retry_s
        self.workers = {Role.PREFILL: prefill.split(), Role.DECODE: decode.split()}
        request = GenerationRequest("r", list(PROMPT), Sampling(max_tokens=max_tokens, logprobs=2), facts)
        questions = Questions(self._choose, self._follow, lambda avoid: self.whole_pays, lambda errors: self.retry_s)
        rules = PipelineRules(first_token_from_prefill, RecoveryRules(**recovery))
        self.pipeline = RequestPipeline(request, questions, rules)
        self.actions: list[Action] = []
        self.take(self.pipeline.start())

    def _choose(self, leg: Leg, role: Role, avoid: frozenset[str], prefer: str | None) -> str | None:
        ready = [worker for worker in self.workers[role] if worker not in avoid]
        return prefer if prefer in ready else next(iter(ready), None)

    def _follow(self, worker_id: str, request: EngineRequest) -> PrefillInProgress | None:
        return PrefillInProgress(f"source of {worker_id}", 7, request.attempt_id) if self.pipelining else None

    def take(self, actions: Sequence[Action]) -> list[Action]:
        self.actions += actions
        return list(actions)

    @property
    def submitted(self) -> EngineRequest:
        return self.of(Submit)[-1].request

    @property
    def worker(self) -> str:
        worker_id: str = self.of(Submit)[-1].worker_id
        return worker_id

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    @property
    def emissions(self) -> list[Emission]:
        return [action.emission for action in self.of(Emit)]

    @property
    def tokens(self) -> list[int]:
        return [token for emission in self.emissions for token in emission.token_ids]

    def answer(self, *tokens: int, **fields: Any) -> list[Action]:
        """An output of the live attempt."""
        output = EngineOutput(self.submitted.attempt_id, list(tokens), **fields)
        return self.take(self.pipeline.on_output(self.worker, output))

    def prefilled(self, token: int = 40, lease: str = "lease-1", **fields: Any) -> list[Action]:
        fields.setdefault("finish_reason", FinishReason.LENGTH)
        return self.answer(token, ticket=ticket(lease) if lease else b"", **fields)

    def gives_up(self, why: FinishReason = FinishReason.ERROR, error: str = "out of memory") -> list[Action]:
        """The live attempt's worker does."""
        return self.answer(finish_reason=why, error=error)

    def retried(self) -> list[Action]:
        """The wait that comes after an error is over."""
        assert isinstance(self.actions[-1], Later)
        assert self.pipeline.waits
        return self.take(self.pipeline.on_retry())

    def ended(self) -> Outcome:
        last = self.actions[-1]
        assert isinstance(last, End)
        assert self.of(End) == [last]
        return last.outcome


def legs(walk: Walk) -> list[tuple[str, Leg]]:
    return [(submit.worker_id, submit.request.leg) for submit in walk.of(Submit)]


def test_the_first_token_goes_out_before_the_hand_over_and_decode_continues_behind_it() -> None:
    walk = Walk(max_tokens=3)
    assert (walk.worker, walk.submitted.leg, walk.submitted.sampling.max_tokens) == ("p1", Leg.PREFILL, 1)
    actions = walk.prefilled(40, origin=PromptOrigin(3, 2, 0))
    assert [type(action) for action in actions] == [Settle, Emit, Submit]
    assert walk.emissions == [Emission("r", [40], cached_tokens=2)]
    decode = walk.submitted
    assert (walk.worker, decode.leg, decode.ticket) == ("d1", Leg.DECODE, ticket())
    assert decode.prompt_token_ids == [*PROMPT, 40]
    assert decode.sampling == Sampling(max_tokens=2, logprobs=2)
    walk.answer(41, origin=PromptOrigin(4, 0, 3))
    assert walk.emissions[-1] == Emission("r", [41])
    walk.answer(42, finish_reason=FinishReason.LENGTH)
    assert walk.tokens == [40, 41, 42]
    assert walk.emissions[-1].finish_reason is FinishReason.LENGTH
    assert walk.ended() is Outcome.COMPLETED
    assert walk.pipeline.handed_over
    assert walk.of(Release) == []


@pytest.mark.parametrize("facts", [SEEDED, GRAMMAR])
def test_with_state_that_spans_tokens_decode_samples_the_first_token_itself(facts: SamplingFacts) -> None:
    walk = Walk(max_tokens=3, facts=facts)
    assert walk.submitted.sampling == Sampling(max_tokens=1)
    walk.prefilled(40, origin=PromptOrigin(3, 1, 0))
    assert walk.emissions == []
    assert walk.submitted.prompt_token_ids == PROMPT
    assert walk.submitted.sampling.max_tokens == 3
    walk.answer(50, origin=PromptOrigin(3, 0, 2))
    assert walk.emissions == [Emission("r", [50], cached_tokens=1)]


def test_a_connector_of_whole_prompts_has_every_first_token_sampled_by_decode() -> None:
    walk = Walk(max_tokens=3, first_token_from_prefill=False)
    walk.prefilled(40, origin=PromptOrigin(3, 1, 0), finish_reason=FinishReason.STOP)
    assert walk.emissions == []
    assert (walk.worker, walk.submitted.leg, walk.submitted.prompt_token_ids) == ("d1", Leg.DECODE, PROMPT)
    assert walk.submitted.sampling.max_tokens == 3
    walk.answer(50, origin=PromptOrigin(3, 0, 3))
    assert walk.emissions == [Emission("r", [50], cached_tokens=1)]


def test_a_ticket_without_a_lease_is_handed_over_and_nothing_is_released_for_it() -> None:
    stock = kv_pb2.Ticket(stock_params=b"{}").SerializeToString()
    walk = Walk(first_token_from_prefill=False)
    walk.answer(40, finish_reason=FinishReason.LENGTH, ticket=stock)
    assert (walk.submitted.leg, walk.submitted.ticket) == (Leg.DECODE, stock)
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert legs(walk)[-1] == ("d2", Leg.WHOLE)
    assert walk.of(Release) == []


@pytest.mark.parametrize("stop_reason", [None, 40])
def test_a_request_that_stops_at_its_first_token_never_touches_decode(stop_reason: int | None) -> None:
    walk = Walk()
    walk.prefilled(40, finish_reason=FinishReason.STOP, stop_reason=stop_reason)
    assert legs(walk) == [("p1", Leg.PREFILL)]
    assert walk.of(Release) == [Release("p1", "lease-1")]
    assert walk.emissions == [Emission("r", [40], finish_reason=FinishReason.STOP, stop_reason=stop_reason)]
    assert walk.ended() is Outcome.COMPLETED


def test_one_token_is_made_whole_by_a_prefill_worker_without_a_lease() -> None:
    walk = Walk(max_tokens=1)
    assert legs(walk) == [("p1", Leg.WHOLE)]
    walk.answer(40, finish_reason=FinishReason.LENGTH, origin=PromptOrigin(3, 0, 0))
    assert walk.ended() is Outcome.COMPLETED
    assert not walk.pipeline.handed_over


def test_one_seeded_token_is_made_by_a_decode_worker_which_does_not_cut_prompts_into_chunks() -> None:
    assert legs(Walk(max_tokens=1, facts=SEEDED)) == [("d1", Leg.WHOLE)]
    assert legs(Walk(max_tokens=1, facts=SEEDED, decode="")) == [("p1", Leg.WHOLE)]


def test_without_a_prefill_worker_decode_does_all_of_it() -> None:
    walk = Walk(prefill="")
    assert legs(walk) == [("d1", Leg.WHOLE)]
    assert walk.submitted.sampling.max_tokens == 4


class WholeWalk(Walk):
    whole_pays = True


@pytest.mark.parametrize(("may_decode", "expected"), [(True, [("p1", Leg.WHOLE)]), (False, [])])
def test_where_a_whole_request_pays_and_decode_has_nobody_a_prefill_worker_does_all_of_it_if_it_may(
    may_decode: bool, expected: list[tuple[str, Leg]]
) -> None:
    walk = WholeWalk(decode="", prefill_may_decode=may_decode)
    assert legs(walk) == expected
    assert walk.pipeline.ended is not may_decode
    assert legs(WholeWalk(prefill_may_decode=may_decode)) == [("d1", Leg.WHOLE)]


def test_without_any_worker_the_request_fails_with_one_error() -> None:
    walk = Walk(prefill="", decode="")
    (emission,) = walk.emissions
    assert isinstance(emission.error, NoWorker)
    assert walk.ended() is Outcome.FAILED


def test_a_prompt_too_short_to_pin_is_run_again_by_decode() -> None:
    walk = Walk()
    walk.prefilled(40, lease="")
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)
    assert walk.submitted.prompt_token_ids == [*PROMPT, 40]
    assert walk.submitted.ticket == b""
    assert walk.submitted.sampling.max_tokens == 3


def test_without_a_decode_worker_the_prefill_worker_goes_on_and_its_lease_ends() -> None:
    walk = Walk(decode="")
    actions = walk.prefilled(40)
    assert [type(action) for action in actions] == [Settle, Emit, Release, Submit]
    assert legs(walk)[-1] == ("p1", Leg.WHOLE)


def test_a_lost_prefill_worker_is_replaced_and_then_decode_takes_over() -> None:
    walk = Walk()
    walk.take(walk.pipeline.on_worker_lost("p1", LOST))
    walk.take(walk.pipeline.on_worker_lost("p2", LOST))
    assert legs(walk) == [("p1", Leg.PREFILL), ("p2", Leg.PREFILL), ("d1", Leg.WHOLE)]
    ids = [submit.request.attempt_id for submit in walk.of(Submit)]
    assert len(set(ids)) == 3
    assert all(attempt_id.startswith("r/") for attempt_id in ids)


def test_a_late_prefill_is_cancelled_and_made_again_elsewhere() -> None:
    walk = Walk()
    late = walk.submitted.attempt_id
    walk.take(walk.pipeline.on_attempt_late(late, DeadlineExceeded("prefill")))
    assert walk.of(Cancel) == [Cancel("p1", late)]
    assert legs(walk)[-1] == ("p2", Leg.PREFILL)
    assert walk.pipeline.on_attempt_late(late, DeadlineExceeded("prefill")) == []


def test_the_answer_of_an_old_attempt_is_ignored_but_its_ticket_goes_back() -> None:
    walk = Walk()
    old = EngineOutput(walk.submitted.attempt_id, [9], finish_reason=FinishReason.LENGTH, ticket=ticket("late"))
    walk.take(walk.pipeline.on_worker_lost("p1", LOST))
    assert walk.pipeline.on_output("p1", old) == [Release("p1", "late")]
    assert walk.emissions == []


def test_a_refused_ticket_makes_decode_compute_the_prompt_and_ends_the_lease() -> None:
    walk = Walk()
    walk.prefilled(40)
    walk.answer(finish_reason=FinishReason.ERROR, error="ticket refused")
    assert walk.of(Release) == [Release("p1", "lease-1")]
    assert legs(walk)[-1] == ("d1", Leg.WHOLE)
    assert not walk.pipeline.handed_over


def test_a_decode_worker_lost_before_its_first_token_ends_the_lease_too() -> None:
    walk = Walk()
    walk.prefilled(40)
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert walk.of(Release) == [Release("p1", "lease-1")]
    assert legs(walk)[-1] == ("d2", Leg.WHOLE)


def test_a_stream_survives_its_decode_worker_without_a_gap() -> None:
    walk = Walk(max_tokens=5)
    walk.prefilled(40)
    walk.answer(41)
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert legs(walk)[-1] == ("d2", Leg.WHOLE)
    assert walk.submitted.prompt_token_ids == [*PROMPT, 40, 41]
    assert walk.submitted.sampling.max_tokens == 3
    walk.answer(42, 43, 44, finish_reason=FinishReason.LENGTH)
    assert walk.tokens == [40, 41, 42, 43, 44]
    assert walk.of(Release) == []
    assert walk.pipeline.handed_over, "it was, though another worker has finished it alone"


def test_a_stream_bound_to_a_grammar_cannot_move_and_says_why() -> None:
    walk = Walk(facts=GRAMMAR)
    walk.prefilled()
    walk.answer(50)
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert walk.emissions[-1].error is LOST
    assert walk.ended() is Outcome.FAILED


def test_a_request_with_a_grammar_that_has_no_token_yet_starts_anew() -> None:
    walk = Walk(facts=GRAMMAR)
    walk.prefilled()
    walk.take(walk.pipeline.on_worker_lost("d1", LOST))
    assert legs(walk)[-1] == ("d2", Leg.WHOLE)
    assert walk.submitted.prompt_token_ids == PROMPT


def test_the_engine_error_reaches_the_client_once_every_worker_has_failed() -> None:
    walk = Walk(prefill="p1", decode="d1")
    walk.gives_up()
    walk.retried()
    walk.gives_up()
    walk.retried()
    error = walk.emissions[-1].error
    assert isinstance(error, EngineFailed)
    assert "out of memory" in str(error)
    assert walk.ended() is Outcome.FAILED


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_cancelling_aborts_the_live_leg_and_frees_what_waits(tokens: int) -> None:
    walk = Walk()
    for token in range(tokens):
        walk.prefilled(40) if token == 0 else walk.answer(41)
    walk.take(walk.pipeline.cancel(Outcome.CANCELLED))
    assert walk.of(Cancel) == [Cancel(walk.worker, walk.submitted.attempt_id)]
    assert walk.of(Release) == ([Release("p1", "lease-1")] if tokens == 1 else [])
    assert walk.ended() is Outcome.CANCELLED
    assert walk.pipeline.cancel(Outcome.CANCELLED) == []


def test_a_request_past_its_deadline_ends_with_the_error_and_stops_its_worker() -> None:
    walk = Walk()
    walk.prefilled()
    late = DeadlineExceeded("too long")
    walk.take(walk.pipeline.fail(late))
    assert walk.emissions[-1].error is late
    assert len(walk.of(Cancel)) == 1
    assert walk.pipeline.fail(late) == []
