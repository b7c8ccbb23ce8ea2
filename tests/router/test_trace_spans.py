"""A request's spans, from its record alone: one tree, in order, with the ids that workers were told."""

from __future__ import annotations

import pytest

from cluster.engine import Sampling as Tokens
from cluster.tracing import Sampling, Span, parse_traceparent
from router.caller import Caller
from router.edge_watch import EdgeWatch, Tracing
from router.generation import GenerationRequest
from router.journal_record import Attempt, Decision, RequestRecord, Rung, Timing
from router.trace_answer import trace_of
from router.trace_spans import exported, request_spans

TRACE = Sampling(1.0, lambda: 999.0).begin("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
NIXL, GRPC = (
    Rung("r1/d2", "nixl", "failed", at_s=0.31, duration_s=0.1, reason="no route"),
    Rung("r1/d2", "grpc", "landed", 4, 400, at_s=0.41, duration_s=0.05, handshake_s=0.01),
)


def record(trace_id: str = TRACE.trace_id) -> RequestRecord:
    """Prefill, a hand-over whose first rung fails, then decode."""
    return RequestRecord(
        "r1",
        "router-1",
        1_000.0,
        "acme",
        64,
        queued_s=0.1,
        actual=Timing(0.3, 0.02),
        decisions=[Decision("prefill", 0.1, "p1", because="the least predicted time")],
        attempts=[
            Attempt("r1/p1", "prefill", "p1", 0.15, 0.15, "completed", first_at_s=0.3),
            Attempt("r1/d2", "decode", "d1", 0.3, 0.7, "completed", first_at_s=0.5),
        ],
        rungs=[NIXL, GRPC],
        output_tokens=5,
        duration_s=1.0,
        outcome="completed",
        trace_id=trace_id,
    )


def tree(spans: list[Span]) -> dict[str, str]:
    """Names of parents by names of spans."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_id, "") for span in spans}


def test_every_part_hangs_where_it_belongs() -> None:
    assert tree(request_spans(record(), TRACE)) == {
        "request": "",
        "admission": "request",
        "placement": "request",
        "prefill": "request",
        "decode": "request",
        "transfer nixl": "decode",
        "transfer grpc": "decode",
    }


def test_times_are_those_of_the_record() -> None:
    times = {span.name: (span.began_unix_s, span.ended_unix_s) for span in request_spans(record(), TRACE)}
    assert times["request"] == (1_000.0, 1_001.0)
    assert times["admission"] == pytest.approx((1_000.0, 1_000.1))
    assert times["placement"] == pytest.approx((1_000.1, 1_000.15))
    assert times["decode"] == pytest.approx((1_000.3, 1_001.0))
    assert times["transfer grpc"] == pytest.approx((1_000.41, 1_000.46))


def test_workers_were_told_the_ids_of_their_attempts() -> None:
    request = GenerationRequest("r1", [1], Tokens(1), caller=Caller(trace=TRACE))
    ids = {span.name: span.span_id for span in request_spans(record(), TRACE)}
    for attempt, name in (("r1/p1", "prefill"), ("r1/d2", "decode")):
        told = parse_traceparent(request.headers_for(attempt)["traceparent"])
        assert told == (TRACE.trace_id, ids[name], True)
    assert GenerationRequest("r1", [1], Tokens(1), trace_headers={"a": "b"}).headers_for("r1/p1") == {"a": "b"}


def test_the_router_leaves_transfers_to_the_workers_and_hangs_the_request_below_its_call() -> None:
    spans = exported(record(), TRACE)
    assert [span.name for span in spans] == ["request", "admission", "placement", "prefill", "decode"]
    assert spans[0].parent_id == TRACE.span_id


def test_a_transfer_stays_within_its_attempt_whatever_the_workers_clock_says() -> None:
    for at_s in (-5.0, 0.0, 50.0):
        told = record()
        told.rungs = [Rung("r1/d2", "nixl", "landed", at_s=at_s, duration_s=0.1)]
        (moved,) = (span for span in request_spans(told) if span.name == "transfer nixl")
        assert 1_000.3 <= moved.began_unix_s <= moved.ended_unix_s <= 1_001.0 + 1e-6


def test_what_failed_says_why() -> None:
    told = record()
    told.outcome, told.error = "failed", "nobody is left"
    told.attempts[1] = Attempt("r1/d2", "decode", "d1", 0.3, 0.7, "lost", "its session broke")
    failed = {span.name: span.failed for span in request_spans(told) if span.failed}
    assert failed == {"request": "nobody is left", "decode": "its session broke", "transfer nixl": "no route"}


def test_a_refused_and_a_running_request_have_what_there_is() -> None:
    refused = RequestRecord("r2", "router-1", 0.0, "t", 1, duration_s=0.5, outcome="refused", error="full")
    assert [(s.name, s.ended_unix_s - s.began_unix_s) for s in request_spans(refused)] == [
        ("request", 0.5),
        ("admission", 0.5),
    ]
    running = record()
    running.outcome, running.duration_s = "", 0.0
    assert request_spans(running)[0].ended_unix_s == pytest.approx(1_001.0)


def test_without_a_trace_the_tree_is_the_same_each_time() -> None:
    one, other = trace_of(record("")), trace_of(record(""))
    assert one == other
    assert (one.trace_id, one.spans[0].parent_id) == ("", "")
    known = {""}
    for span in one.spans:
        assert span.parent_id in known, "a child before its parent"
        known.add(span.span_id)
    assert one.spans[1].at_s == 0.0
    assert one.spans[0].attributes["prompt_tokens"] == "64"


class Kept:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def send(self, spans: object) -> None:
        assert isinstance(spans, list)
        self.spans += spans


def test_an_edge_traces_sampled_calls_only_and_nothing_without_a_collector() -> None:
    kept, caller = Kept(), Caller()
    watch = EdgeWatch(Tracing(Sampling(0.0, lambda: 5.0), kept), wall=lambda: 7.0)
    caller.trace = watch.begin([(b"traceparent", TRACE.traceparent.encode()), (b"tracestate", b"v=1")])
    assert caller.trace is not None
    watch.ended(caller, "POST /v1/completions", "200")
    (span,) = kept.spans
    assert (span.parent_id, span.began_unix_s, span.ended_unix_s, span.entry) == (TRACE.span_id, 5.0, 7.0, True)
    assert caller.trace.state == "v=1"
    caller.trace = watch.begin([])
    watch.ended(caller, "POST /v1/completions", "200")
    assert len(kept.spans) == 1
    assert EdgeWatch().begin([(b"traceparent", TRACE.traceparent.encode())]) is None


def test_the_first_part_of_an_answer_is_timed_from_its_first_token() -> None:
    told: list[float] = []
    watch = EdgeWatch(first_byte=told.append, now=lambda: 10.0)
    watch.answers(Caller())
    watch.answers(Caller(first_token=9.5))
    assert told == [0.5]
