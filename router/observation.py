"""One router's metrics and traces, from before its parts are made until after they have ended.

Hands each part what it tells, gathers what all of them have counted, and owns the task and the thread that export.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from cluster.clock import Clock
from cluster.config_observability import ObservabilityConfig
from cluster.metrics import Outlet, Sample
from cluster.metrics_publisher import publish_until_cancelled
from cluster.open_tracing import close_outbox, open_outbox
from cluster.tracing import Sampling, TraceContext
from router.edge_watch import EdgeWatch, Tracing
from router.fleet import Fleet
from router.journal_record import RequestRecord
from router.metrics_page import MetricsPage
from router.request_metrics import RequestMetrics
from router.router_metrics import RouterMetrics
from router.scaling_link import ScalingLink
from router.shared_state import SharedState
from router.trace_spans import exported


class RouterObservation:
    """`requests` and `traced` are for the journal, `watch` for the edges. Nothing is traced without a collector."""

    def __init__(self, config: ObservabilityConfig, router_id: str, clock: Clock) -> None:
        self._config = config
        self._router_id = router_id
        self._clock = clock
        self._outbox = open_outbox(config, "baton-router", router_id)
        self._publishing: asyncio.Task[None] | None = None
        self.requests = RequestMetrics(router_id)
        tracing = None if self._outbox is None else Tracing(Sampling(config.sampling_ratio, time.time), self._outbox)
        self.watch = EdgeWatch(tracing, self.requests.first_byte, clock.now)

    def traced(self, record: RequestRecord, trace: TraceContext) -> None:
        """The finished record of a request of a trace."""
        if self._outbox is not None:
            self._outbox.send(exported(record, trace))

    def page(self, fleet: Fleet, shared: SharedState, scaling: ScalingLink) -> MetricsPage:
        return MetricsPage(self._metrics(fleet, shared, scaling).samples, fleet.describe)

    def start(self, fleet: Fleet, shared: SharedState, scaling: ScalingLink, outlet: Outlet) -> None:
        """From now on `outlet` is told what the router's own page says of the router."""
        metrics = self._metrics(fleet, shared, scaling)

        async def collect() -> Iterable[Sample]:
            return list(metrics.samples())

        publishing = publish_until_cancelled(collect, outlet, self._config.metrics_period_s, self._clock)
        self._publishing = asyncio.create_task(publishing, name="publish metrics")

    async def close(self) -> None:
        """After the last request has ended. May be called twice."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        await close_outbox(self._outbox)

    def _metrics(self, fleet: Fleet, shared: SharedState, scaling: ScalingLink) -> RouterMetrics:
        return RouterMetrics(
            router_id=self._router_id,
            dispatch=fleet.dispatch,
            requests=self.requests,
            store=shared.status,
            drains=lambda: len(shared.mirror.marks),
            spans=lambda: {} if self._outbox is None else self._outbox.counts,
            sizes=lambda: scaling.sizes,
        )
