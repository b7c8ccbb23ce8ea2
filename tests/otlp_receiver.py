"""A collector for tests: takes spans over OTLP gRPC and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Received:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, str]
    failed: bool


@dataclass
class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """`refusal`: what every call ends with, while it is set. `rejects`: so many spans of each call."""

    endpoint: str = ""
    refusal: grpc.StatusCode | None = None
    rejects: int = 0
    calls: int = 0
    _spans: list[Received] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._changed:
            self.calls += 1
            if self.refusal is None:
                for batch in request.resource_spans:
                    service = _values(batch.resource.attributes)["service.name"]
                    self._spans += [_received(service, span) for each in batch.scope_spans for span in each.spans]
            self._changed.notify_all()
        if self.refusal is not None:
            context.abort(self.refusal, "as the test wants it")
        partial = trace_service_pb2.ExportTracePartialSuccess(rejected_spans=self.rejects, error_message="too long")
        return trace_service_pb2.ExportTraceServiceResponse(partial_success=partial)

    def trace(self, trace_id: str, spans: int, within_s: float = 30.0) -> list[Received]:
        """Waits for so many spans of the trace; raises `AssertionError` with those that came."""

        def there() -> list[Received]:
            return [span for span in self._spans if span.trace_id == trace_id]

        with self._changed:
            came = self._changed.wait_for(lambda: len(there()) >= spans, within_s)
            assert came, f"{len(there())} of {spans} spans: {sorted(span.name for span in there())}"
            return there()

    def wait_for_calls(self, calls: int, within_s: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls >= calls, within_s), f"{self.calls} calls"


@contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.endpoint = f"http://{host}:{server.add_insecure_port(f'{host}:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()


def _values(attributes: Any) -> dict[str, str]:
    return {each.key: str(getattr(each.value, each.value.WhichOneof("value"))) for each in attributes}


def _received(service: str, span: Any) -> Received:
    return Received(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        failed=bool(span.status.code),
    )
