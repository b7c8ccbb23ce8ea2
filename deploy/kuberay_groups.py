"""The worker groups of a RayService: one for each part of a configuration, with its sizes, resources and times.

Pure: a configuration in, values out. Knows nothing of how a manifest is written. The Helm chart computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.config import Config, PoolConfig
from cluster.pool_options import ACCELERATOR

HEAD_GRACE_S = 60
_MARGIN_S = 60  # Serve ends the replica first, then Ray ends itself


@dataclass(frozen=True, slots=True)
class Group:
    """`resources` are Ray's, for one pod. `longest_s` is the longest that something in one of its pods may run: the
    part's own drain, or a stream through the HTTP proxy that Serve starts in every pod."""

    name: str
    minimum: int
    maximum: int
    cpus: float
    gpus: int
    resources: Mapping[str, float]
    longest_s: float
    ports: Mapping[str, int]

    @property
    def grace_s(self) -> int:
        """Until Kubernetes kills the pod."""
        return math.ceil(self.longest_s) + _MARGIN_S


def worker_groups(config: Config) -> list[Group]:
    router, deadline_s = config.router, config.router.request_deadline_s
    return [
        Group(
            name="router",
            minimum=router.replicas,
            maximum=router.most_replicas,
            cpus=router.cpus_per_replica,
            gpus=0,
            resources=router.resources,
            longest_s=max(router.drain_s, deadline_s),
            ports={"grpc": router.grpc_port},
        ),
        _pool_group("prefill", config.prefill, deadline_s),
        _pool_group("decode", config.decode, deadline_s),
    ]


def _pool_group(name: str, pool: PoolConfig, deadline_s: float) -> Group:
    bounds = pool.autoscale
    resources = dict(pool.resources)
    if pool.accelerator_type:
        resources[ACCELERATOR + pool.accelerator_type] = 1
    return Group(
        name=name,
        minimum=bounds.min_replicas if bounds else pool.replicas,
        maximum=pool.most_replicas,
        cpus=pool.cpus_per_replica,
        gpus=pool.gpus_per_replica,
        resources=resources,
        longest_s=max(pool.drain_s, deadline_s),
        ports={},
    )
