"""Spans on their way to a collector: a bounded queue, and the one thread that empties it.

Nothing that serves requests waits for it: what finds no room is dropped and counted. That the collector does not answer
is said once, and once more when it does again. How a span is written on the wire is `tracing_otlp`'s business.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from cluster.tracing import Span

logger = logging.getLogger(__name__)

Export = Callable[[Sequence[Span]], int]
"""Sends a batch and says how many of it were refused; raises what kept it from arriving. Must return within a deadline
of its own."""

_ROOM = 8_192
_BATCH = 512
_PERIOD_S = 1.0

SENT, FAILED, DROPPED = "sent", "failed", "dropped"


class Outbox:
    """Implements `tracing.Spans`. `period_s`: how long spans wait for company."""

    def __init__(self, export: Export, collector: str, room: int = _ROOM, period_s: float = _PERIOD_S) -> None:
        self._export = export
        self._collector = collector
        self._room = room
        self._period_s = period_s
        self._waiting: deque[Span] = deque()
        self._counts = {SENT: 0, FAILED: 0, DROPPED: 0}
        self._closing = threading.Event()
        self._lost = False  # as far as was last said
        self._thread = threading.Thread(target=self._run, name="trace export", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Mapping[str, int]:
        """Spans by what became of them: "sent", "failed" (no answer, or a refusal) or "dropped" (no room)."""
        return dict(self._counts)

    def send(self, spans: Sequence[Span]) -> None:
        if len(self._waiting) + len(spans) > self._room or self._closing.is_set():
            self._counts[DROPPED] += len(spans)
        else:
            self._waiting.extend(spans)

    def close(self, within_s: float) -> None:
        """Sends what waits if that goes quickly. Blocks for at most so long; may be called twice."""
        self._closing.set()
        self._thread.join(within_s)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(self._period_s)
            while self._waiting and not (closing and self._lost):
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._try(batch)

    def _try(self, batch: Sequence[Span]) -> None:
        try:
            refused = self._export(batch)
        except Exception as error:
            self._counts[FAILED] += len(batch)
            if not self._lost:
                self._lost = True
                logger.warning("traces do not reach %s: %s; said once, counted from now on", self._collector, error)
        else:
            self._counts[SENT] += len(batch) - refused
            self._counts[FAILED] += refused
            if self._lost:
                self._lost = False
                logger.warning("traces reach %s again", self._collector)
