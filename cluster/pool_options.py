"""How Ray Serve runs one pool, as plain options: replicas or scaling, resources, health and shutdown. Imports no
ray."""

from __future__ import annotations

from typing import Any

from cluster.config import Config, PoolConfig
from cluster.config_scaling import PoolBounds
from cluster.engine import Role
from cluster.scaling.frame import ScalingSetup

_HEALTH_PERIOD_S = 5.0
_HEALTH_TIMEOUT_S = 10.0
_CLOSE_S = 45.0  # on top of the drain: the last reads of its blocks, leaving the directory, the engine's own end
_DRAIN_LOOK_S = 0.5
# Tokens do not pass through Serve: its own thread for our code would only cost switches. The replica's loop is uvloop.
_ENVIRONMENT = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}

ACCELERATOR = "accelerator_type:"
"""What Ray's resource of a node's kind of accelerator begins with; the kind follows."""


def serve_options(config: Config, role: Role, policy: str) -> dict[str, Any]:
    """Arguments of Serve's `Deployment.options`. `policy` is the import path of the scaling policy's class."""
    pool = config.pool(role)
    options: dict[str, Any] = {
        "ray_actor_options": _actor_options(pool),
        "graceful_shutdown_timeout_s": pool.drain_s + _CLOSE_S,
        "graceful_shutdown_wait_loop_s": _DRAIN_LOOK_S,
        "max_surge_percent": pool.surge_percent,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
    }
    if pool.gpus_per_replica > 1:
        options |= {"placement_group_bundles": [_bundle(pool)], "placement_group_strategy": "STRICT_PACK"}
    if pool.autoscale is None:
        options["num_replicas"] = pool.replicas
    else:
        kwargs = {"cluster": config.name, "pool": role.value, "setup": ScalingSetup.of(config).document}
        options["autoscaling_config"] = {
            **_scaling(pool.autoscale),
            "policy": {"policy_function": policy, "policy_kwargs": kwargs},
        }
    return options


def _actor_options(pool: PoolConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": pool.cpus_per_replica, "runtime_env": {"env_vars": dict(_ENVIRONMENT)}}
    if pool.gpus_per_replica:
        options["num_gpus"] = pool.gpus_per_replica
    if pool.accelerator_type is not None:
        options["accelerator_type"] = pool.accelerator_type
    if pool.resources:
        options["resources"] = dict(pool.resources)
    return options


def _bundle(pool: PoolConfig) -> dict[str, float]:
    """The engine's tensor-parallel processes are children of the replica, so all GPUs are in the replica's own
    bundle."""
    bundle: dict[str, float] = {"CPU": pool.cpus_per_replica, "GPU": pool.gpus_per_replica, **pool.resources}
    if pool.accelerator_type is not None:
        bundle[ACCELERATOR + pool.accelerator_type] = 0.001  # as Ray itself asks for it
    return bundle


def _scaling(bounds: PoolBounds) -> dict[str, Any]:
    """Serve's delays are off: the autoscaler has its own. A new deployment keeps the size that the pool has."""
    return {
        "min_replicas": bounds.min_replicas,
        "max_replicas": bounds.max_replicas,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
    }
