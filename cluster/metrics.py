"""What a metric is, and what is told of it: the small protocol between those who count and those who export.

Which metrics there are is `metrics_table`'s; this must not know how they are written or who scrapes them.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

PREFIX = "baton_"
OTHER = "other"
"""Stands for every value that a label does not know: what a peer says must not make new series."""


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` as it is exported, with the prefix and, at its end, the unit; a counter ends in `_total`. `labels` in the
    order of a sample's values. `buckets`: upper bounds, of a histogram only, in its unit."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


@dataclass(slots=True)
class Buckets:
    """Observations of one series of a histogram: `counts` has one place more than there are bounds, for all above."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """A value on a bound counts below it, as Prometheus has it."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        """Of each bound as Prometheus writes it, how many observations are not above it."""
        so_far, told = 0, []
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            told.append((bound, float(so_far)))
        return told

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of one series now. `labels`: values in the order of the metric's. Counters count from the start of the
    process that tells."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Buckets


class Histogram:
    """All series of one metric. `fixed`: values of its first labels, the same for all of them."""

    def __init__(self, metric: Metric, *fixed: str) -> None:
        self._metric = metric
        self._fixed = fixed
        self._series: dict[tuple[str, ...], Buckets] = {}
        if len(fixed) == len(metric.labels):
            self._series[()] = Buckets(metric.buckets)  # told from the start, so that its rate is known from the first

    def observe(self, value: float, *labels: str) -> None:
        """`labels`: the values of those that are not fixed; the caller keeps them few."""
        buckets = self._series.get(labels)
        if buckets is None:
            buckets = self._series[labels] = Buckets(self._metric.buckets)
        buckets.observe(value)

    def samples(self) -> list[Sample]:
        return [Sample(self._metric, (*self._fixed, *labels), buckets) for labels, buckets in self._series.items()]


class Outlet(Protocol):
    """Where samples go. `put` must not wait."""

    def put(self, sample: Sample) -> None: ...
