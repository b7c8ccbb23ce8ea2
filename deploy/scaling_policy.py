"""The policy that Serve's controller asks for the size of one pool: reads reported loads, applies the pure rule.

Serve copies this module into its controller, builds the class once a deployment and calls it about ten times a second:
it must neither block nor keep state. Serve's own delays and bounds apply around the answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cluster.autoscaling import LOAD_METRIC, desired_replicas
from cluster.config import AutoscaleBounds

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


class PoolLoadPolicy:
    """`AutoscalingPolicy(policy_function="deploy.scaling_policy:PoolLoadPolicy", policy_kwargs={"bounds": ...})`.

    `bounds` is `AutoscaleBounds.model_dump()`. A replica reports its load through `record_autoscaling_stats`, as
    `{LOAD_METRIC: load}`.
    """

    def __init__(self, bounds: dict[str, int | float]) -> None:
        self._bounds = AutoscaleBounds.model_validate(bounds)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, object]]:
        """The replicas wanted, and no state to keep."""
        reported = (context.aggregated_metrics or {}).get(LOAD_METRIC, {})
        loads = [reported.get(replica, math.nan) for replica in context.running_replicas]
        return desired_replicas(loads, self._bounds, context.target_num_replicas), {}
