"""Histograms and counters over this router's requests, fed by their journal: nothing is noted twice.

Observing is a few list operations, since it happens for every token. It must not know how metrics are exported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cluster import metrics_table as table
from cluster.engine import TransferRung
from cluster.metrics import Buckets, Histogram, Metric, Sample
from cluster.metrics_table import known
from router.actions import AS_WANTED
from router.journal_record import RequestRecord

_COUNTERS = (
    table.PROMPT_TOKENS,
    table.OUTPUT_TOKENS,
    table.PREFIX_PREDICTED,
    table.PREFIX_SELECTED,
    table.PREFIX_REUSED,
)


@dataclass(frozen=True, slots=True)
class FirstToken:
    """When a request's first token came: seconds since its arrival, and of them in admission's queue, until its first
    attempt was sent, and since the attempt that gave it was. `predicted_s`: without the queue; None: not predicted."""

    ttft_s: float
    queued_s: float
    placement_s: float
    prefill_s: float
    predicted_s: float | None


class RequestMetrics:
    def __init__(self, router_id: str) -> None:
        self._router = router_id
        self._ttft = Histogram(table.TTFT, router_id)
        self._queue = Histogram(table.QUEUE, router_id)
        self._placement = Histogram(table.PLACEMENT, router_id)
        self._prefill = Histogram(table.PREFILL, router_id)
        self._first_byte = Histogram(table.FIRST_BYTE, router_id)
        self._itl = Buckets(table.ITL.buckets)
        self._duration = Histogram(table.DURATION, router_id)
        self._predicted = Histogram(table.PREDICTED_TTFT, router_id)
        self._ratio = Histogram(table.PREDICTION_RATIO, router_id)
        self._handshake = Histogram(table.HANDSHAKE, router_id)
        self._transfer = Histogram(table.TRANSFER, router_id)
        self._recompute = Histogram(table.RECOMPUTE, router_id)
        self._sums: Counter[Metric] = Counter(dict.fromkeys(_COUNTERS, 0))
        self._recovered: Counter[str] = Counter(dict.fromkeys(("completed", "cancelled", "failed"), 0))

    def first_token(self, came: FirstToken) -> None:
        self._ttft.observe(came.ttft_s)
        self._queue.observe(came.queued_s)
        self._placement.observe(came.placement_s)
        self._prefill.observe(came.prefill_s)
        if came.predicted_s is not None:
            self._predicted.observe(came.predicted_s)
            if came.predicted_s > 0:
                self._ratio.observe((came.ttft_s - came.queued_s) / came.predicted_s)

    def first_byte(self, seconds: float) -> None:
        """From the first token to the first part of a streamed answer."""
        self._first_byte.observe(seconds)

    def between(self, seconds: float, tokens: int) -> None:
        """So many more tokens of one request, so long after those before."""
        self._itl.observe(seconds / tokens, tokens)

    def rung(self, rung: TransferRung) -> None:
        if rung.began_unix_s:
            transport = known("transport", rung.transport)
            self._handshake.observe(rung.handshake_s, transport)
            self._transfer.observe(rung.seconds - rung.handshake_s, transport, known("outcome", rung.outcome))

    def recomputed(self, seconds: float) -> None:
        """Decode computed a prompt that was to be handed over, for so long."""
        self._recompute.observe(seconds)

    def ended(self, record: RequestRecord, most_cached: int | None) -> None:
        """`most_cached`: tokens that some worker was believed to have at the first choice; None: there was none."""
        if record.outcome == "completed":
            self._duration.observe(record.duration_s)
        if any(attempt.outcome not in AS_WANTED for attempt in record.attempts if attempt.leg != "prefetch"):
            self._recovered[record.outcome] += 1
        if most_cached is None:
            return
        self._sums[table.PROMPT_TOKENS] += record.prompt_tokens
        self._sums[table.OUTPUT_TOKENS] += record.output_tokens
        if record.cached_tokens_actual is None:
            return  # no worker said what it found: that says nothing of what was predicted
        self._sums[table.PREFIX_PREDICTED] += most_cached
        self._sums[table.PREFIX_SELECTED] += record.cached_tokens_predicted
        self._sums[table.PREFIX_REUSED] += record.cached_tokens_actual

    def samples(self) -> Iterator[Sample]:
        for histogram in (self._ttft, self._queue, self._placement, self._prefill, self._first_byte, self._duration):
            yield from histogram.samples()
        for histogram in (self._predicted, self._ratio, self._handshake, self._transfer, self._recompute):
            yield from histogram.samples()
        yield Sample(table.ITL, (self._router,), self._itl)
        for metric, value in self._sums.items():
            yield Sample(metric, (self._router,), float(value))
        for outcome, count in self._recovered.items():
            yield Sample(table.RECOVERED, (self._router, known("outcome", outcome)), float(count))
