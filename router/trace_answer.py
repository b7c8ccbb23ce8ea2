"""A request's record as the answer of `baton.v1.Admin.Trace`. Only the translation."""

from __future__ import annotations

from cluster.tracing import Span
from protos.baton.v1 import admin_pb2 as pb
from router.journal_record import RequestRecord
from router.trace_spans import request_spans


def trace_of(record: RequestRecord) -> pb.RequestTrace:
    return pb.RequestTrace(
        request_id=record.request_id,
        router_id=record.router_id,
        trace_id=record.trace_id,
        arrived_unix_s=record.at_unix_s,
        spans=[_span(span, record.at_unix_s) for span in request_spans(record)],
    )


def _span(span: Span, arrived_unix_s: float) -> pb.TraceSpan:
    return pb.TraceSpan(
        name=span.name,
        span_id=span.span_id,
        parent_id=span.parent_id,
        at_s=span.began_unix_s - arrived_unix_s,
        duration_s=span.ended_unix_s - span.began_unix_s,
        attributes={name.removeprefix("baton."): str(value) for name, value in span.attributes.items()},
        failed=span.failed,
    )
