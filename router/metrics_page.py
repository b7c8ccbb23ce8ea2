"""The router's page of metrics, as Prometheus reads it: its own, and what every worker says of itself at that moment.

The one module that knows prometheus_client; the process-wide registry of that library is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cluster import metrics_table as table
from cluster.metrics import Buckets, Kind, Metric, Sample
from cluster.worker_metrics import worker_samples
from router.fleet_reports import WorkerReport

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Page = Callable[[], Awaitable[bytes]]


class MetricsPage:
    """`own`: this router's samples; `describe` asks every worker, within a deadline of its own. Who asks while it is
    being written gets the same page, so that scraping never asks workers twice at once."""

    def __init__(
        self, own: Callable[[], Iterable[Sample]], describe: Callable[[], Awaitable[list[WorkerReport]]]
    ) -> None:
        self._own = own
        self._describe = describe
        self._writing: asyncio.Task[bytes] | None = None

    async def __call__(self) -> bytes:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="write metrics")
        return await asyncio.shield(self._writing)

    async def _write(self) -> bytes:
        reports = await self._describe()
        samples = [*self._own(), *(sample for report in reports for sample in _of_worker(report))]
        return page_of(samples)


def page_of(samples: Iterable[Sample]) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(samples))
    return generate_latest(registry)


def _of_worker(report: WorkerReport) -> Iterator[Sample]:
    """A worker that does not answer is named, and nothing is said of it that may be old."""
    if report.description is not None and not report.unreachable:
        yield from worker_samples(report.description)
    else:
        yield Sample(table.WORKER_UP, (report.record.role.value, report.record.worker_id), 0.0)


class _Told(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Family]:
        by_metric: dict[str, list[Sample]] = {}
        for sample in self._samples:
            by_metric.setdefault(sample.metric.name, []).append(sample)
        for samples in by_metric.values():
            yield _family(samples[0].metric, samples)


def _family(metric: Metric, samples: list[Sample]) -> Family:
    match metric.kind:
        case Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for sample in samples:
                assert isinstance(sample.value, Buckets)
                histogram.add_metric(sample.labels, sample.value.cumulative(), sample.value.total)
            return histogram
        case Kind.COUNTER:
            family: CounterMetricFamily | GaugeMetricFamily = CounterMetricFamily(
                metric.name, metric.help, labels=metric.labels
            )
        case Kind.GAUGE:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for sample in samples:
        assert not isinstance(sample.value, Buckets)
        family.add_metric(sample.labels, sample.value)
    return family
