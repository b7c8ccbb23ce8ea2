"""What Ray is told of samples: rises of counters, values of gauges, and histograms series by series."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import metrics_ray
from cluster import metrics_table as table
from cluster.metrics import Buckets, Kind, Metric, Sample
from cluster.metrics_ray import RayOutlet

WHO = {"pool": "decode", "worker": "d1"}


class FakeRay:
    """In place of `ray.util.metrics`, which needs a running Ray to keep anything."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, dict[str, str]]] = []
        self.Counter = self.Gauge = self._make

    def _make(self, name: str, text: str, *described: Any) -> Any:
        calls = self.calls

        class Made:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert value > 0, "Ray refuses that"
                self.set(value, tags)

            def set(self, value: float, tags: dict[str, str]) -> None:
                calls.append((name, value, tags))

        return Made()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(metrics_ray, "ray_metrics", fake)
    return fake


def test_counters_are_told_by_what_has_come_and_without_the_ending_that_ray_adds(ray: FakeRay) -> None:
    outlet = RayOutlet()
    for value in (0.0, 3.0, 3.0, 5.0):
        outlet.put(Sample(table.RECOMPUTED, ("decode", "d1"), value))
    name = "baton_worker_recomputed_requests"
    assert ray.calls == [(name, 3.0, WHO), (name, 2.0, WHO)]


def test_gauges_are_told_every_time(ray: FakeRay) -> None:
    outlet = RayOutlet()
    for _ in range(2):
        outlet.put(Sample(table.KV_USAGE, ("decode", "d1"), 0.25))
    assert ray.calls == [("baton_worker_kv_usage_ratio", 0.25, WHO)] * 2


def test_histograms_are_told_as_the_series_that_prometheus_reads(ray: FakeRay) -> None:
    outlet, buckets = RayOutlet(), Buckets((1.0, 2.5))
    metric = Metric("baton_x_seconds", Kind.HISTOGRAM, "seconds", "X.", ("router",), buckets.bounds)
    for value in (0.5, 1.0, 2.0, 9.0):
        buckets.observe(value)
    outlet.put(Sample(metric, ("r1",), buckets))
    tags = {"router": "r1"}
    assert ray.calls == [
        ("baton_x_seconds_bucket", 2.0, {"router": "r1", "le": "1.0"}),
        ("baton_x_seconds_bucket", 3.0, {"router": "r1", "le": "2.5"}),
        ("baton_x_seconds_bucket", 4.0, {"router": "r1", "le": "+Inf"}),
        ("baton_x_seconds_count", 4.0, tags),
        ("baton_x_seconds_sum", 12.5, tags),
    ]
