"""Spans to an OTLP collector over gRPC: the one module that knows OpenTelemetry.

Writes the protocol's own messages: spans are made with ids and times of their own, which a tracing library would make
itself. Called on the outbox's thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from cluster.errors import BatonError
from cluster.tracing import Span

logger = logging.getLogger(__name__)

_EXPORT_S = 5.0
_SCOPE = InstrumentationScope(name="baton")

Value = str | int | float


class CollectorRefuses(BatonError):
    """The collector did not take any of a batch of spans, or did not answer in time."""


class OtlpExport:
    """Implements `tracing_outbox.Export`. `endpoint`: http://HOST:PORT, or https:// with the machine's trusted roots.
    `service`: what the resource of every span says. Connects at the first batch."""

    def __init__(self, endpoint: str, service: Mapping[str, Value]) -> None:
        self._endpoint = endpoint
        self._said = False  # that it rejects spans
        parts = urlsplit(endpoint)
        tls = parts.scheme == "https"
        # As everywhere between parts of a cluster, a proxy of the environment is not asked.
        options = [("grpc.enable_http_proxy", 0)]
        self._channel = (
            grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options)
            if tls
            else grpc.insecure_channel(parts.netloc, options)
        )
        self._stub = trace_service_pb2_grpc.TraceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._resource = Resource(attributes=_attributes(service))

    def __call__(self, spans: Sequence[Span]) -> int:
        """Returns how many of them the collector rejected; why is said once. Raises `CollectorRefuses`."""
        scoped = trace_pb2.ScopeSpans(scope=_SCOPE, spans=[to_otlp(span) for span in spans])
        batch = trace_pb2.ResourceSpans(resource=self._resource, scope_spans=[scoped])
        request = trace_service_pb2.ExportTraceServiceRequest(resource_spans=[batch])
        try:
            answer = self._stub.Export(request, timeout=_EXPORT_S)
        except grpc.RpcError as error:
            raise CollectorRefuses(f"{error.code().name}: {error.details()}") from error
        rejected: int = min(answer.partial_success.rejected_spans, len(spans))
        if rejected and not self._said:
            self._said = True
            logger.warning(
                "%s rejects %d of %d spans: %s; said once, counted from now on",
                self._endpoint, rejected, len(spans), answer.partial_success.error_message,
            )  # fmt: skip
        return rejected


def to_otlp(span: Span) -> trace_pb2.Span:
    failed = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=span.failed) if span.failed else None
    return trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=trace_pb2.Span.SPAN_KIND_SERVER if span.entry else trace_pb2.Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=int(span.began_unix_s * 1e9),
        end_time_unix_nano=int(max(span.began_unix_s, span.ended_unix_s) * 1e9),
        attributes=_attributes(span.attributes),
        status=failed,
    )


def _attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: Value) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
