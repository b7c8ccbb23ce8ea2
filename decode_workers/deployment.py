"""The decode pool under Ray Serve: ticket in, tokens out; also whole requests when disaggregation does not pay.

What is special to it: it pulls blocks and then holds them for long, so it is loaded by its sequences and their blocks.
"""

from __future__ import annotations

import functools

import ray
from ray import serve

from cluster.clock import RealClock
from cluster.config import Config
from cluster.directory import RayDirectory
from cluster.engine import Role
from cluster.metrics_ray import RayOutlet
from cluster.pool_options import serve_options
from cluster.worker_observation import WorkerObservation
from cluster.worker_replica import WorkerReplica, worker_spec
from kv_transfer.worker_engine import build_engine


class DecodeWorker:
    """One replica. Serve awaits the constructor, asks for health, and awaits the destructor to stop it."""

    _replica: WorkerReplica | None = None
    _watched: WorkerObservation | None = None

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        pool, clock = config.decode, RealClock()
        spec = worker_spec(Role.DECODE, pool, config, ray.util.get_node_ip_address())
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


def deployment(config: Config, scaling_policy: str) -> serve.Application:
    """`scaling_policy`: import path of the class that sizes the pool when it scales by itself."""
    options = serve_options(config, Role.DECODE, scaling_policy)
    return serve.deployment(DecodeWorker, name="decode", **options).bind(config)
