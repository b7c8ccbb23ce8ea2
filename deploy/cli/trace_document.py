"""The answer of `Admin.Trace` as the document that `baton trace` prints: stable keys, seconds throughout.

Knows the protocol's messages; knows nothing of channels or of how a document is written.
"""

from __future__ import annotations

from typing import Literal

from deploy.cli.document_part import Moment, Part
from protos.baton.v1 import admin_pb2


class Span(Part):
    """`at_s` counts from the request's arrival; `depth` is 0 for the request itself. `failed`: why, empty when it did
    not. `attributes`, and the ids, are OpenTelemetry's."""

    name: str
    span_id: str
    parent_id: str
    depth: int
    at_s: float
    duration_s: float
    attributes: dict[str, str]
    failed: str


class Trace(Part):
    """`trace_id` is empty where requests are not traced; parents come before their children."""

    api_version: Literal["baton/v1"] = "baton/v1"
    kind: Literal["Trace"] = "Trace"
    request: str
    router: str
    trace_id: str
    arrived_at: Moment
    spans: list[Span]


def trace_document(answer: admin_pb2.RequestTrace) -> Trace:
    depths: dict[str, int] = {}
    for span in answer.spans:
        depths[span.span_id] = depths.get(span.parent_id, -1) + 1
    return Trace(
        request=answer.request_id,
        router=answer.router_id,
        trace_id=answer.trace_id,
        arrived_at=answer.arrived_unix_s,
        spans=[_span(span, depths[span.span_id]) for span in answer.spans],
    )


def _span(answer: admin_pb2.TraceSpan, depth: int) -> Span:
    return Span(
        name=answer.name,
        span_id=answer.span_id,
        parent_id=answer.parent_id,
        depth=depth,
        at_s=answer.at_s,
        duration_s=answer.duration_s,
        attributes=dict(answer.attributes),
        failed=answer.failed,
    )
