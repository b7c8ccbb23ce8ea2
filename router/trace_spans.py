"""A request's record as spans: what was waited for, decided, tried and moved, and when.

The same spans go to a collector and to `baton trace`; only the engines' own view of the attempts is missing here, which
their workers send themselves. It must not know where records come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import xxhash

from cluster.tracing import Span, TraceContext, span_id
from router.actions import AS_WANTED
from router.journal_record import Attempt, Decision, RequestRecord, Rung

TRANSFER = "transfer"


def request_spans(record: RequestRecord, trace: TraceContext | None = None) -> list[Span]:
    """The request first, then what it is made of, parents before children. Without a `trace` the ids are made up, the
    same ones each time."""
    trace_id = record.trace_id or xxhash.xxh3_128_hexdigest(f"{record.router_id}/{record.request_id}".encode())
    root = Span(
        name="request",
        trace_id=trace_id,
        span_id=span_id(trace_id, f"{record.router_id}/{record.request_id}/{record.at_unix_s}"),
        parent_id="" if trace is None else trace.span_id,
        began_unix_s=record.at_unix_s,
        ended_unix_s=record.at_unix_s + max(record.duration_s, *_ends(record)),
        attributes=_facts(record),
        failed=record.error if record.outcome in ("failed", "refused") else "",
    )
    return [root, *_stages(record, root), *_attempts(record, root)]


def exported(record: RequestRecord, trace: TraceContext) -> list[Span]:
    """What the router has to send: transfers are sent by the workers that made them."""
    return [span for span in request_spans(record, trace) if not span.name.startswith(TRANSFER)]


def _ends(record: RequestRecord) -> Iterator[float]:
    """Of a request that still runs, the parts that have ended say how far it has come."""
    yield record.queued_s
    for attempt in record.attempts:
        yield attempt.at_s + attempt.duration_s


def _facts(record: RequestRecord) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {
        "baton.request_id": record.request_id,
        "baton.router_id": record.router_id,
        "baton.prompt_tokens": record.prompt_tokens,
        "baton.output_tokens": record.output_tokens,
        "baton.outcome": record.outcome or "running",
    }
    if record.cached_tokens_actual is not None:
        facts["baton.cached_tokens"] = record.cached_tokens_actual
    for name, seconds in (("ttft", record.actual.ttft_s), ("itl", record.actual.itl_s)):
        if seconds is not None:
            facts[f"baton.{name}_s"] = round(seconds, 6)
    return facts


def _stages(record: RequestRecord, root: Span) -> Iterator[Span]:
    """Before the first attempt: the wait for admission, then placement. A request that was refused only waited."""
    sent = min((attempt.at_s for attempt in record.attempts), default=None)
    waited = record.queued_s if record.queued_s or sent is not None else record.duration_s
    yield _child(root, "admission", _part(root, "admission"), 0.0, waited, {})
    if sent is not None:
        first = next((each for each in record.decisions if each.question != "disaggregate"), None)
        chosen = {} if first is None else {"baton.worker_id": first.chosen, "baton.because": first.because}
        yield _child(root, "placement", _part(root, "placement"), waited, max(0.0, sent - waited), chosen)


def _attempts(record: RequestRecord, root: Span) -> Iterator[Span]:
    for attempt in sorted(record.attempts, key=lambda each: each.at_s):
        failed = "" if attempt.outcome in AS_WANTED else attempt.reason or attempt.outcome
        facts = _attempt_facts(attempt, record.decisions)
        # Named by the attempt alone: its worker was told this id when the attempt was sent.
        own_id = span_id(root.trace_id, attempt.attempt_id)
        own = _child(root, attempt.leg, own_id, attempt.at_s, attempt.duration_s, facts, failed)
        yield own
        for number, rung in enumerate(record.rungs):
            if rung.attempt_id == attempt.attempt_id:
                yield _rung(own, rung, number, attempt, record.at_unix_s)


def _attempt_facts(attempt: Attempt, decisions: Sequence[Decision]) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {
        "baton.attempt_id": attempt.attempt_id,
        "baton.worker_id": attempt.worker_id,
        "baton.outcome": attempt.outcome,
    }
    if attempt.first_at_s is not None:
        facts["baton.first_output_s"] = round(attempt.first_at_s - attempt.at_s, 6)
    asked = [each for each in decisions if each.question == attempt.leg and each.at_s <= attempt.at_s]
    if asked:
        facts["baton.because"] = asked[-1].because
    return facts


def _rung(parent: Span, rung: Rung, number: int, attempt: Attempt, arrived_unix_s: float) -> Span:
    """Within its attempt, whatever the clocks of the two machines say."""
    room = max(0.0, attempt.duration_s - rung.duration_s)
    at_s = min(max(rung.at_s, attempt.at_s), attempt.at_s + room)
    facts: dict[str, str | int | float] = {
        "baton.outcome": rung.outcome,
        "baton.blocks": rung.blocks,
        "baton.bytes": rung.size,
        "baton.handshake_s": round(rung.handshake_s, 6),
    }
    failed = "" if rung.outcome == "landed" else rung.reason or rung.outcome
    name = f"{TRANSFER} {rung.transport}"
    took = at_s - (parent.began_unix_s - arrived_unix_s), rung.duration_s
    return _child(parent, name, _part(parent, f"rung{number}"), *took, facts, failed)


def _part(parent: Span, part: str) -> str:
    """The id of what is a part of the parent alone."""
    return span_id(parent.trace_id, f"{parent.span_id}/{part}")


def _child(
    parent: Span,
    name: str,
    own_id: str,
    at_s: float,
    duration_s: float,
    attributes: Mapping[str, str | int | float],
    failed: str = "",
) -> Span:
    """`at_s` counts from the parent's begin."""
    began = parent.began_unix_s + at_s
    return Span(
        name=name,
        trace_id=parent.trace_id,
        span_id=own_id,
        parent_id=parent.span_id,
        began_unix_s=began,
        ended_unix_s=began + duration_s,
        attributes=attributes,
        failed=failed,
    )
