"""One worker's metrics and traces, from before its engine is built until after it has stopped.

Whoever hosts the worker brings the outlet. Neither can fail or delay what the worker does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from cluster import metrics_table as table
from cluster.clock import Clock
from cluster.config_observability import ObservabilityConfig
from cluster.engine import Engine
from cluster.errors import WorkerLost
from cluster.metrics import Outlet, Sample
from cluster.metrics_publisher import publish_until_cancelled
from cluster.open_tracing import close_outbox, open_outbox
from cluster.tracing_engine import TracedEngine
from cluster.worker_metrics import worker_samples
from cluster.worker_replica import BuildEngine, WorkerReplica
from cluster.worker_spec import WorkerSpec


class WorkerObservation:
    def __init__(self, config: ObservabilityConfig, spec: WorkerSpec, outlet: Outlet, clock: Clock) -> None:
        self._config = config
        self._spec = spec
        self._outlet = outlet
        self._clock = clock
        self._outbox = open_outbox(config, f"baton-{spec.role.value}", spec.worker_id)
        self._publishing: asyncio.Task[None] | None = None

    def traced(self, build: BuildEngine) -> BuildEngine:
        """The same engines, with spans where the configuration wants them."""
        outbox = self._outbox
        if outbox is None:
            return build

        async def traced(spec: WorkerSpec, folder: Path) -> Engine:
            return TracedEngine(await build(spec, folder), outbox, spec.worker_id, time.time)

        return traced

    def start(self, replica: WorkerReplica) -> None:
        """Once the replica has started."""

        async def collect() -> Iterable[Sample]:
            try:
                return [*worker_samples(await replica.worker.describe()), *self._spans()]
            except WorkerLost:
                return []  # it was drained, and has nothing any more

        publishing = publish_until_cancelled(collect, self._outlet, self._config.metrics_period_s, self._clock)
        self._publishing = asyncio.create_task(publishing, name="publish metrics")

    async def stop(self) -> None:
        """After the worker has stopped. May be called twice, and without `start`."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        await close_outbox(self._outbox)

    def _spans(self) -> Iterable[Sample]:
        counts = {} if self._outbox is None else self._outbox.counts
        for outcome, count in counts.items():
            yield Sample(table.TRACE_SPANS, (self._spec.worker_id, outcome), float(count))
