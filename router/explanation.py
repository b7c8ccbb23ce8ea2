"""A request's record as the answer of `baton.v1.Admin.Explain`.

Only the translation; it must not know where records come from.
"""

from __future__ import annotations

from protos.baton.v1 import admin_pb2 as pb
from router.journal_record import Candidate, Decision, RequestRecord, Timing


def explanation_of(record: RequestRecord, *, dry_run: bool = False) -> pb.Explanation:
    """`dry_run`: the request was never sent; it has no arrival."""
    explanation = pb.Explanation(
        request_id=record.request_id,
        router_id=record.router_id,
        tenant=record.tenant,
        priority=record.priority,
        session_id=record.session_id,
        prompt_tokens=record.prompt_tokens,
        cached_tokens_predicted=record.cached_tokens_predicted,
        cached_tokens_actual=record.cached_tokens_actual,
        queued_s=record.queued_s,
        predicted=_timing(record.predicted),
        actual=_timing(record.actual),
        decisions=[_decision(decision) for decision in record.decisions],
        attempts=_attempts(record),
        rungs=_rungs(record),
        output_tokens=record.output_tokens,
        duration_s=record.duration_s,
        outcome=record.outcome,
        error=record.error,
        trace_id=record.trace_id,
    )
    if not dry_run:
        explanation.arrived_unix_s = record.at_unix_s
    return explanation


def _timing(timing: Timing) -> pb.Timing:
    return pb.Timing(ttft_s=timing.ttft_s, itl_s=timing.itl_s)


def _decision(decision: Decision) -> pb.PlacementDecision:
    return pb.PlacementDecision(
        question=decision.question,
        at_s=decision.at_s,
        chosen=decision.chosen,
        runner_up=decision.runner_up,
        candidates=[_candidate(candidate) for candidate in decision.candidates],
        left_out=decision.left_out,
        because=decision.because,
    )


def _candidate(candidate: Candidate) -> pb.PlacementCandidate:
    terms = [pb.CostTerm(name=name, seconds=seconds) for name, seconds in candidate.terms.items()]
    return pb.PlacementCandidate(worker_id=candidate.worker_id, terms=terms, total_s=candidate.total_s)


def _attempts(record: RequestRecord) -> list[pb.AttemptReport]:
    return [
        pb.AttemptReport(
            attempt_id=attempt.attempt_id,
            leg=attempt.leg,
            worker_id=attempt.worker_id,
            at_s=attempt.at_s,
            duration_s=attempt.duration_s,
            outcome=attempt.outcome,
            reason=attempt.reason,
            first_at_s=attempt.first_at_s,
        )
        for attempt in record.attempts
    ]


def _rungs(record: RequestRecord) -> list[pb.TransferRung]:
    return [
        pb.TransferRung(
            attempt_id=rung.attempt_id,
            transport=rung.transport,
            outcome=rung.outcome,
            blocks=rung.blocks,
            bytes=rung.size,
            reason=rung.reason,
            at_s=rung.at_s,
            duration_s=rung.duration_s,
            handshake_s=rung.handshake_s,
        )
        for rung in record.rungs
    ]
