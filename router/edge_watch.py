"""What an edge tells of its calls: which trace each belongs to, when its answer began, and how it ended.

The same for HTTP and gRPC. Costs next to nothing where nothing is traced; it must not know what a call is about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.tracing import TRACEPARENT, TRACESTATE, Sampling, Span, Spans, TraceContext
from router.caller import Caller, text_of


@dataclass(frozen=True, slots=True)
class Tracing:
    """Who is traced, and where spans go."""

    sampling: Sampling
    spans: Spans


class EdgeWatch:
    """Without `tracing` nothing is traced. `first_byte` is told, for each streamed answer, the seconds from its first
    token to its first part; `now` is the router's clock, `wall` seconds since 1970."""

    def __init__(
        self,
        tracing: Tracing | None = None,
        first_byte: Callable[[float], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._tracing = tracing
        self._first_byte = first_byte
        self._now = now
        self._wall = wall

    def begin(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> TraceContext | None:
        """The trace of a call with these headers, whose names are in lower case; None: nothing is traced."""
        if self._tracing is None:
            return None
        told = {TRACEPARENT: "", TRACESTATE: ""}
        for key, value in headers:
            if (name := text_of(key)) in told:
                told[name] = text_of(value)
        return self._tracing.sampling.begin(told[TRACEPARENT], told[TRACESTATE])

    @property
    def now(self) -> float:
        """The router's clock."""
        return self._now()

    def answers(self, caller: Caller) -> None:
        """The first part of the answer is on its way."""
        if caller.first_token is not None:
            self._first_byte(self._now() - caller.first_token)

    def ended(self, caller: Caller, name: str, status: str, failed: str = "") -> None:
        """The call is over. `failed`: why its client did not get what it asked for, by no fault of its own."""
        trace = caller.trace
        if self._tracing is None or trace is None or not trace.sampled:
            return
        span = Span(
            name=name,
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            began_unix_s=trace.began_unix_s,
            ended_unix_s=self._wall(),
            attributes={"baton.status": status},
            failed=failed,
            entry=True,
        )
        self._tracing.spans.send([span])
