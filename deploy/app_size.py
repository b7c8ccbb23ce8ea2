"""What all parts of a cluster need of Ray together, with every part at its largest, and of what is scarce the least.
Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.config import Config, PoolConfig
from cluster.engine import Role
from cluster.pool_options import ACCELERATOR


def most_cpus(config: Config) -> float:
    """Logical CPUs."""
    parts = (config.router, config.prefill, config.decode)
    return sum(part.most_replicas * part.cpus_per_replica for part in parts)


def most_gpus(config: Config) -> int:
    return sum(pool.most_replicas * pool.gpus_per_replica for pool in (config.prefill, config.decode))


def least_gpus(config: Config) -> int:
    """With fewer it never serves: every pool at its smallest, and of one that may be at zero a single replica."""
    return sum(_least_replicas(pool) * pool.gpus_per_replica for pool in (config.prefill, config.decode))


def too_few_gpus(config: Config, found: float) -> str | None:
    """Why so many GPUs are too few; None when they suffice."""
    if (needed := least_gpus(config)) <= found:
        return None
    parts = " and ".join(
        f"{_least_replicas(pool)} x {pool.gpus_per_replica} of {name}"
        for name, pool in (("prefill", config.prefill), ("decode", config.decode))
    )
    return (
        f"needs {needed} GPUs ({parts}), and Ray found {found:g} on this machine: lower gpus_per_replica or the pools' "
        "sizes; `baton doctor` says which GPUs are there, and CUDA_VISIBLE_DEVICES may hide some"
    )


def absent_accelerator(config: Config, resources: Iterable[str]) -> str | None:
    """Why some worker could start nowhere, given the names of the resources that Ray found; None when all could."""
    kinds = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    for role in Role:
        wanted = config.pool(role).accelerator_type
        if wanted is not None and wanted not in kinds:
            return (
                f"{role.value}.accelerator_type is {wanted}, and Ray found {' and '.join(kinds) or 'none'} on "
                "this machine: name what is there, or leave it out to take any"
            )
    return None


def most_resources(config: Config) -> dict[str, float]:
    """Of Ray's custom resources, by name."""
    needed: dict[str, float] = {}
    for part in (config.router, config.prefill, config.decode):
        for name, amount in part.resources.items():
            needed[name] = needed.get(name, 0.0) + amount * part.most_replicas
    return needed


def _least_replicas(pool: PoolConfig) -> int:
    return pool.replicas if pool.autoscale is None else max(1, pool.autoscale.min_replicas)
