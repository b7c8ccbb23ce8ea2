"""Samples through Ray's metrics agent, which exports them as `ray_baton_*`: the one module that knows ray.util.metrics.

Ray keeps its own sums, so counters are told as what has come since the last time. Ray's histograms take one observation
at a time, 5 us each, and forget all but its bucket: here a histogram is told as the series that Prometheus reads of it,
each of them a gauge, which costs the same however much was observed, and is exact.
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
        self._told: dict[_Series, float] = {}

    def put(self, sample: Sample) -> None:
        metric = sample.metric
        tags = dict(zip(metric.labels, sample.labels, strict=True))
        series = metric.name, sample.labels
        match sample.value:
            case Buckets():
                self._distribute(metric, sample.value, tags)
            case value if metric.kind is Kind.COUNTER:
                self._count(metric, series, value, tags)
            case value:
                self._gauge(metric.name, metric.help, metric.labels).set(value, tags)

    def _count(self, metric: Metric, series: _Series, value: float, tags: dict[str, str]) -> None:
        more = value - self._told.get(series, 0.0)
        if more > 0:
            self._counter(metric).inc(more, tags)
        self._told[series] = value

    def _distribute(self, metric: Metric, buckets: Buckets, tags: dict[str, str]) -> None:
        in_buckets = self._gauge(f"{metric.name}_bucket", metric.help, (*metric.labels, "le"))
        for bound, count in buckets.cumulative():
            in_buckets.set(count, tags | {"le": bound})
        self._gauge(f"{metric.name}_count", metric.help, metric.labels).set(buckets.count, tags)
        self._gauge(f"{metric.name}_sum", metric.help, metric.labels).set(buckets.total, tags)

    def _counter(self, metric: Metric) -> ray_metrics.Counter:
        """Ray adds the `_total` itself."""
        if metric.name not in self._counters:
            name = metric.name.removesuffix("_total")
            self._counters[metric.name] = ray_metrics.Counter(name, metric.help, metric.labels)
        return self._counters[metric.name]

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> ray_metrics.Gauge:
        if name not in self._gauges:
            self._gauges[name] = ray_metrics.Gauge(name, text, labels)
        return self._gauges[name]
