"""All samples of one router: what its parts have counted, put under the names of the table.

Counts nothing itself: the numbers are those of `baton status`, and the histograms those of the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from cluster import metrics_table as table
from cluster.engine import Role
from cluster.metrics import Metric, Sample
from cluster.metrics_table import known
from protos.baton.v1 import admin_pb2
from router.dispatch import Dispatch
from router.generation import Outcome
from router.request_metrics import RequestMetrics

StoreStatus = Callable[[], admin_pb2.StoreStatus]


_OUTCOMES = {outcome.value: 0 for outcome in Outcome}


class RouterMetrics:
    """`drains`: how many workers are drained now; `spans`: spans by what became of them, empty where nothing is
    traced; `sizes`: how many workers each pool should have."""

    def __init__(
        self,
        router_id: str,
        dispatch: Dispatch,
        requests: RequestMetrics,
        store: StoreStatus,
        drains: Callable[[], int],
        spans: Callable[[], Mapping[str, int]] = dict,
        sizes: Callable[[], Mapping[Role, int]] = dict,
    ) -> None:
        self._router = router_id
        self._dispatch = dispatch
        self._requests = requests
        self._store = store
        self._drains = drains
        self._spans = spans
        self._sizes = sizes

    def samples(self) -> Iterator[Sample]:
        yield from self._requests.samples()
        yield from self._counters(self._dispatch.counters())
        yield from self._workers()
        yield from self._shared(self._store())
        yield from self._by_label(table.TRACE_SPANS, "outcome", self._spans())

    def _counters(self, told: admin_pb2.RouterCounters) -> Iterator[Sample]:
        yield from self._by_label(table.REQUESTS, "outcome", _OUTCOMES | dict(told.requests_by_outcome))
        yield from self._by_label(table.PLACED, "way", {"disaggregated": told.disaggregated, "whole": told.whole})
        yield from self._by_label(table.REFUSALS, "reason", _zeros("reason") | self._dispatch.counts.refusals)
        yield from self._by_label(table.RECOVERIES, "cause", _zeros("cause") | dict(told.recoveries))
        for metric, value in (
            (table.IN_FLIGHT, told.in_flight),
            (table.QUEUED_REQUESTS, told.queued),
            (table.QUEUED_TOKENS, told.queued_tokens),
            (table.RETRIES_REFUSED, told.retries_refused),
            (table.SLOW_WORKERS, told.slow_workers),
            (table.DRAINS, self._drains()),
        ):
            yield Sample(metric, (self._router,), float(value))

    def _workers(self) -> Iterator[Sample]:
        linked = Counter((view.role.value, "leaving" if view.leaving else "ready") for view in self._dispatch.view)
        for pool in ("prefill", "decode"):
            for state in ("ready", "leaving"):
                yield Sample(table.LINKED, (self._router, pool, state), float(linked[pool, state]))
        for role, size in self._sizes().items():
            yield Sample(table.POOL_SIZE, (self._router, role.value), float(size))

    def _shared(self, store: admin_pb2.StoreStatus) -> Iterator[Sample]:
        yield Sample(table.STORE_DEGRADED, (self._router,), float(store.degraded))
        yield Sample(table.STORE_DROPPED, (self._router,), float(store.dropped_writes))
        yield Sample(table.ROUTERS, (self._router,), float(store.routers))

    def _by_label(self, metric: Metric, label: str, counts: Mapping[str, int]) -> Iterator[Sample]:
        """Values that the label does not know are told together."""
        sums: Counter[str] = Counter()
        for value, count in counts.items():
            sums[known(label, value)] += count
        for value, count in sums.items():
            yield Sample(metric, (self._router, value), float(count))


def _zeros(label: str) -> dict[str, int]:
    """Series are there before they count: else the first of a kind is no rise."""
    return dict.fromkeys(sorted(table.LABEL_VALUES[label]), 0)
