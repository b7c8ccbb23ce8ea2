"""The answer of `Admin.Explain` as the document that `baton explain` prints: stable keys, seconds throughout.

Knows the protocol's messages; knows nothing of channels or of how a document is written.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deploy.cli.document_part import Moment, Part
from protos.baton.v1 import admin_pb2


class Candidate(Part):
    """`costs`: predicted seconds by name, `total_s` their sum."""

    worker: str
    total_s: float
    costs: dict[str, float]


class Decision(Part):
    question: str
    at_s: float
    chosen: str
    runner_up: str
    because: str
    candidates: list[Candidate]
    left_out: int


class Attempt(Part):
    id: str
    leg: str
    worker: str
    at_s: float
    duration_s: float
    outcome: str
    reason: str
    first_at_s: float | None = None


class Rung(Part):
    """One step by which KV blocks were to come to the worker of `attempt`."""

    attempt: str
    transport: str
    outcome: str
    blocks: int
    bytes: int
    reason: str
    at_s: float = 0.0
    duration_s: float = 0.0
    handshake_s: float = 0.0


class Timing(Part):
    """None: not known, or there was none."""

    ttft_s: float | None
    itl_s: float | None


class Explanation(Part):
    """`outcome` is empty while the request runs; `arrived_at` is None for one that was never sent."""

    api_version: Literal["baton/v1"] = "baton/v1"
    kind: Literal["Explanation"] = "Explanation"
    request: str
    router: str
    arrived_at: Moment | None
    tenant: str
    priority: str
    session: str
    prompt_tokens: int
    cached_tokens_predicted: int
    cached_tokens_actual: int | None
    output_tokens: int
    queued_s: float
    predicted: Timing
    actual: Timing
    decisions: list[Decision] = Field(default_factory=list)
    attempts: list[Attempt] = Field(default_factory=list)
    rungs: list[Rung] = Field(default_factory=list)
    duration_s: float
    outcome: str
    error: str
    trace_id: str = ""


def explanation(answer: admin_pb2.Explanation) -> Explanation:
    return Explanation(
        request=answer.request_id,
        router=answer.router_id,
        arrived_at=answer.arrived_unix_s if answer.HasField("arrived_unix_s") else None,
        tenant=answer.tenant,
        priority=answer.priority,
        session=answer.session_id,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens_predicted=answer.cached_tokens_predicted,
        cached_tokens_actual=answer.cached_tokens_actual if answer.HasField("cached_tokens_actual") else None,
        output_tokens=answer.output_tokens,
        queued_s=answer.queued_s,
        predicted=_timing(answer.predicted),
        actual=_timing(answer.actual),
        decisions=[_decision(decision) for decision in answer.decisions],
        attempts=[_attempt(attempt) for attempt in answer.attempts],
        rungs=[_rung(rung) for rung in answer.rungs],
        duration_s=answer.duration_s,
        outcome=answer.outcome,
        error=answer.error,
        trace_id=answer.trace_id,
    )


def _rung(answer: admin_pb2.TransferRung) -> Rung:
    return Rung(
        attempt=answer.attempt_id,
        transport=answer.transport,
        outcome=answer.outcome,
        blocks=answer.blocks,
        bytes=answer.bytes,
        reason=answer.reason,
        at_s=answer.at_s,
        duration_s=answer.duration_s,
        handshake_s=answer.handshake_s,
    )


def _timing(answer: admin_pb2.Timing) -> Timing:
    return Timing(
        ttft_s=answer.ttft_s if answer.HasField("ttft_s") else None,
        itl_s=answer.itl_s if answer.HasField("itl_s") else None,
    )


def _decision(answer: admin_pb2.PlacementDecision) -> Decision:
    return Decision(
        question=answer.question,
        at_s=answer.at_s,
        chosen=answer.chosen,
        runner_up=answer.runner_up,
        because=answer.because,
        candidates=[_candidate(candidate) for candidate in answer.candidates],
        left_out=answer.left_out,
    )


def _candidate(answer: admin_pb2.PlacementCandidate) -> Candidate:
    return Candidate(
        worker=answer.worker_id,
        total_s=answer.total_s,
        costs={term.name: term.seconds for term in answer.terms},
    )


def _attempt(answer: admin_pb2.AttemptReport) -> Attempt:
    return Attempt(
        id=answer.attempt_id,
        leg=answer.leg,
        worker=answer.worker_id,
        at_s=answer.at_s,
        duration_s=answer.duration_s,
        outcome=answer.outcome,
        reason=answer.reason,
        first_at_s=answer.first_at_s if answer.HasField("first_at_s") else None,
    )
