"""Histograms as Prometheus reads them, and the rules that every declared metric keeps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import metrics_table as table
from cluster.metrics import OTHER, Buckets, Histogram, Kind, Metric

UNITS = ("seconds", "tokens", "bytes", "blocks", "ratio")


def test_a_value_on_a_bound_counts_below_it_and_one_above_all_bounds_counts_last() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        buckets.observe(value)
    assert (buckets.counts, buckets.total, buckets.count) == ([2, 2, 1], 14.0, 5)


@given(values=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5)), max_size=20))
def test_observing_several_times_is_the_same_as_again_and_again(values: list[tuple[float, int]]) -> None:
    at_once, one_by_one = Buckets((0.1, 1.0, 10.0)), Buckets((0.1, 1.0, 10.0))
    for value, times in values:
        at_once.observe(value, times)
        for _ in range(times):
            one_by_one.observe(value)
    assert at_once.counts == one_by_one.counts
    assert at_once.total == pytest.approx(one_by_one.total)


def test_a_series_without_free_labels_is_there_before_its_first_value() -> None:
    alone = Histogram(table.TTFT, "router-1")
    by_transport = Histogram(table.HANDSHAKE, "router-1")
    assert [sample.labels for sample in alone.samples()] == [("router-1",)]
    assert by_transport.samples() == []
    by_transport.observe(0.5, "nixl")
    assert [sample.labels for sample in by_transport.samples()] == [("router-1", "nixl")]


@pytest.mark.parametrize("metric", table.METRICS.values(), ids=lambda metric: metric.name)
def test_every_metric_is_named_by_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"baton_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.help.endswith(".")
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    if metric.kind is Kind.HISTOGRAM or (metric.unit in UNITS and metric.kind is Kind.GAUGE):
        assert metric.name.endswith(f"_{metric.unit}")


@pytest.mark.parametrize("metric", table.METRICS.values(), ids=lambda metric: metric.name)
def test_every_label_has_few_values_or_names_what_runs(metric: Metric) -> None:
    for label in metric.labels:
        assert label in table.LABEL_VALUES or label in ("router", "worker", "process")


def test_what_a_peer_says_makes_no_new_series() -> None:
    assert table.known("transport", "nixl") == "nixl"
    assert table.known("transport", "carrier pigeon") == OTHER
