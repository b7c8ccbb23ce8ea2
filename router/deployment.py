"""The router as a Ray Serve ingress deployment. Serve places, checks and drains it; its work is `RouterReplica`'s."""

from __future__ import annotations

import logging

from ray import serve
from starlette.types import ASGIApp

from cluster.clock import RealClock
from cluster.config import Config
from cluster.config_parts import version_of
from cluster.directory import RayDirectory
from cluster.metrics_ray import RayOutlet
from cluster.scaling.seat import RaySeat
from cluster.serve_version import with_version
from router.replica import RouterReplica, start_replica

NAME = "router"

_ONGOING_HEADROOM = 64
"""Requests beyond those that may run or wait that still reach a router, to be refused with an answer that says why."""

_LINGER_S = 5
"""A stopping router stays open for so long, for proxies that have not heard of it; Serve's own hear within a second."""

_CLOSE_S = 30.0
"""On top of the longest requests: closing edges and links."""

_ENVIRONMENT = {
    # Serve's own thread for our code would only cost a switch for every chunk of every stream.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_LINGER_S),
    "TOKENIZERS_PARALLELISM": "false",
}


@serve.ingress()  # late bound: the application is built inside the replica, on its event loop
class Router:
    """`pools`: handles of the worker deployments. They only make the application one graph: no request takes them."""

    _replica: RouterReplica | None = None

    def __init__(self, config: Config, *pools: object) -> None:
        self._config = config
        logging.getLogger("router").setLevel(config.observability.log_level.upper())

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        name = self._config.name
        directory, seat = RayDirectory(name), RaySeat(name)
        self._replica = await start_replica(self._config, directory, RealClock(), seat, RayOutlet())
        return self._replica.app

    def check_health(self) -> None:
        """Raises when a task of the router has died; a missing worker is no reason to replace the router."""
        if self._replica is not None:
            self._replica.check()

    async def __del__(self) -> None:
        """Serve's last call, after HTTP requests have been drained; calls over gRPC still run."""
        replica, self._replica = self._replica, None
        if replica is not None:
            await replica.close()


def deployment(config: Config, *pools: serve.Application) -> serve.Application:
    """The ingress of the application; `pools` are the bound worker deployments below it."""
    router = config.router
    actor_options = {
        "num_cpus": router.cpus_per_replica,
        "resources": dict(router.resources),
        "runtime_env": {"env_vars": dict(_ENVIRONMENT)},
    }
    made = serve.deployment(
        Router,
        name=NAME,
        num_replicas=router.replicas,
        max_ongoing_requests=router.max_in_flight + config.admission.queue.max_requests + _ONGOING_HEADROOM,
        ray_actor_options=actor_options,
        graceful_shutdown_timeout_s=_LINGER_S + router.drain_s + _CLOSE_S,
        max_surge_percent=router.surge_percent,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
    )
    return with_version(made, version_of(config)).bind(config, *pools)
