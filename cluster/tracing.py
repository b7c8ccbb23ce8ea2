"""Which requests are traced, and how their spans are named across processes: W3C trace context, without a library.

A span's id follows from its trace and what it stands for, so that a peer can be told its parent before that has ended,
and nothing need be kept meanwhile. It must not know where spans go.
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import xxhash

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 0x01
_LONGEST_STATE = 512


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One client call, seen from inside: ids in lower-case hex. `span_id` is the call's own, `parent_id` the client's,
    empty where the client has none. `state`: the client's `tracestate`, passed on as it is. `began_unix_s`: when the
    call came. What is not `sampled` is named, but nothing is sent of it."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    sampled: bool = True
    state: str = ""
    began_unix_s: float = 0.0

    @property
    def traceparent(self) -> str:
        return self._traceparent(self.span_id)

    def span_of(self, name: str) -> str:
        """The id of the span that stands for `name`, which must be unique in the trace."""
        return span_id(self.trace_id, name)

    def headers(self, name: str) -> dict[str, str]:
        """What a peer must be told to make its spans children of the span of `name`."""
        told = {TRACEPARENT: self._traceparent(self.span_of(name))}
        return told | {TRACESTATE: self.state} if self.state else told

    def _traceparent(self, of: str) -> str:
        return f"00-{self.trace_id}-{of}-{_SAMPLED if self.sampled else 0:02x}"


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time. Seconds since 1970. `failed`: why, empty where it did not."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_unix_s: float
    ended_unix_s: float
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    failed: str = ""
    entry: bool = False
    """The first span of this service in its trace: what a client called."""


class Spans(Protocol):
    """Where spans go. `send` must neither wait nor raise."""

    def send(self, spans: Sequence[Span]) -> None: ...


def span_id(trace_id: str, name: str) -> str:
    made = xxhash.xxh3_64_hexdigest(f"{trace_id}/{name}".encode())
    return made if made != _NO_SPAN else "f" * 16


def parse_traceparent(header: str) -> tuple[str, str, bool] | None:
    """Trace id, parent id and whether the caller samples; None for what is no `traceparent`, as the standard has it."""
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None or (header.startswith("00") and found[4]):
        return None
    trace_id, parent_id = found[1], found[2]
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return trace_id, parent_id, bool(int(found[3], 16) & _SAMPLED)


class Sampling:
    """Decides of each call whether it is traced: as its client says, else `ratio` of them. `draw`: from [0, 1)."""

    def __init__(self, ratio: float, wall: Callable[[], float], draw: Callable[[], float] = random.random) -> None:
        self._ratio = ratio
        self._wall = wall
        self._draw = draw

    def begin(self, traceparent: str = "", tracestate: str = "") -> TraceContext:
        """A header that is none counts as absent."""
        told, own, now = parse_traceparent(traceparent), secrets.token_hex(8), self._wall()
        if told is None:
            return TraceContext(secrets.token_hex(16), own, sampled=self._draw() < self._ratio, began_unix_s=now)
        trace_id, parent_id, sampled = told
        return TraceContext(trace_id, own, parent_id, sampled, tracestate[:_LONGEST_STATE], now)
