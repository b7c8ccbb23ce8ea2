"""One replica of a pool under Ray Serve, whichever pool: a worker with its engine, its end of the hand-off, and its
metrics and traces.

Each pool's package says which it is and gives it its name in Serve.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import ray

from cluster.clock import RealClock
from cluster.config import Config
from cluster.directory import RayDirectory
from cluster.engine import Role
from cluster.metrics_ray import RayOutlet
from cluster.worker_observation import WorkerObservation
from cluster.worker_replica import WorkerReplica, worker_spec
from kv_transfer.worker_engine import build_engine


class PoolReplica:
    """Serve awaits the constructor, asks for health, and awaits the destructor to stop it."""

    role: ClassVar[Role]
    _replica: WorkerReplica | None = None
    _watched: WorkerObservation | None = None

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        pool, clock = config.pool(self.role), RealClock()
        spec = worker_spec(self.role, pool, config, ray.util.get_node_ip_address())
        self._watched = WorkerObservation(config.observability, spec, RayOutlet(), clock)
        build = self._watched.traced(functools.partial(build_engine, config, pool, clock))
        self._replica = WorkerReplica(spec, build, RayDirectory(config.name), clock, pool.drain_s)
        await self._replica.start()
        self._watched.start(self._replica)

    async def check_health(self) -> None:
        if self._replica is not None:
            self._replica.check_health()

    async def stop(self) -> None:
        """Leaves the directory, drains and ends the engine. May be called twice, and while the constructor runs."""
        if self._replica is not None:
            await self._replica.stop()
        if self._watched is not None:
            await self._watched.stop()

    async def __del__(self) -> None:
        await self.stop()
