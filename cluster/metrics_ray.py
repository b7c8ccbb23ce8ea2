"""Samples through Ray's metrics agent, which exports them as `ray_baton_*`: the one module that knows ray.util.metrics.

Ray keeps its own sums, so counters and histograms are told as what has come since the last time. Ray's histograms take
single observations and know only their bucket: each is told as the middle of its bucket, which is what Ray makes of it
in any case.
"""

from __future__ import annotations

from ray.util import metrics as ray_metrics

from cluster.metrics import Buckets, Kind, Metric, Sample

_Series = tuple[str, tuple[str, ...]]


class RayOutlet:
    """Implements `cluster.metrics.Outlet`, for the one process that made it."""

    def __init__(self) -> None:
        self._gauges: dict[str, ray_metrics.Gauge] = {}
        self._counters: dict[str, ray_metrics.Counter] = {}
        self._histograms: dict[str, ray_metrics.Histogram] = {}
        self._told: dict[_Series, float] = {}
        self._told_counts: dict[_Series, list[int]] = {}

    def put(self, sample: Sample) -> None:
        metric = sample.metric
        tags = dict(zip(metric.labels, sample.labels, strict=True))
        series = metric.name, sample.labels
        match sample.value:
            case Buckets():
                self._observe(metric, series, sample.value, tags)
            case value if metric.kind is Kind.COUNTER:
                self._count(metric, series, value, tags)
            case value:
                self._gauge(metric).set(value, tags)

    def _count(self, metric: Metric, series: _Series, value: float, tags: dict[str, str]) -> None:
        more = value - self._told.get(series, 0.0)
        if more > 0:
            self._counter(metric).inc(more, tags)
        self._told[series] = value

    def _observe(self, metric: Metric, series: _Series, buckets: Buckets, tags: dict[str, str]) -> None:
        histogram, before = self._histogram(metric), self._told_counts.get(series, [0] * len(buckets.counts))
        for place, count in enumerate(buckets.counts):
            for _ in range(count - before[place]):
                histogram.observe(_middle(metric.buckets, place), tags)
        self._told_counts[series] = list(buckets.counts)

    def _counter(self, metric: Metric) -> ray_metrics.Counter:
        """Ray adds the `_total` itself."""
        if metric.name not in self._counters:
            name = metric.name.removesuffix("_total")
            self._counters[metric.name] = ray_metrics.Counter(name, metric.help, metric.labels)
        return self._counters[metric.name]

    def _gauge(self, metric: Metric) -> ray_metrics.Gauge:
        if metric.name not in self._gauges:
            self._gauges[metric.name] = ray_metrics.Gauge(metric.name, metric.help, metric.labels)
        return self._gauges[metric.name]

    def _histogram(self, metric: Metric) -> ray_metrics.Histogram:
        if metric.name not in self._histograms:
            made = ray_metrics.Histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
            self._histograms[metric.name] = made
        return self._histograms[metric.name]


def _middle(bounds: tuple[float, ...], place: int) -> float:
    if place == len(bounds):
        return 2 * bounds[-1]
    below = bounds[place - 1] if place else 0.0
    return (below + bounds[place]) / 2
