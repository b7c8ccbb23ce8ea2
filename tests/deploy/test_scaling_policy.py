"""The policy as Serve calls it: built from JSON, given Serve's own context."""

from __future__ import annotations

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from cluster.autoscaling import LOAD_METRIC
from cluster.config import AutoscaleBounds
from deploy.scaling_policy import PoolLoadPolicy

BOUNDS = AutoscaleBounds(min_replicas=1, max_replicas=8, target_load=0.5)
PREFILL = DeploymentID(name="prefill", app_name="baton")


def context(*loads: float | None, target: int) -> AutoscalingContext:
    """What Serve knows when replica n reported `loads[n]`; None has not reported yet."""
    replicas = [ReplicaID(str(at), PREFILL) for at in range(len(loads))]
    reported = {replica: load for replica, load in zip(replicas, loads, strict=True) if load is not None}
    return AutoscalingContext(
        deployment_id=PREFILL,
        deployment_name="prefill",
        app_name="baton",
        current_num_replicas=len(replicas),
        target_num_replicas=target,
        running_replicas=replicas,
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics=lambda: {LOAD_METRIC: reported} if reported else {},
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=None,
    )


@pytest.fixture
def policy() -> PoolLoadPolicy:
    return PoolLoadPolicy(BOUNDS.model_dump(mode="json"))


def test_reported_loads_decide(policy: PoolLoadPolicy) -> None:
    assert policy(context(1.0, 1.0, target=2)) == (4, {})


def test_a_pool_that_has_not_reported_keeps_what_was_asked_for(policy: PoolLoadPolicy) -> None:
    assert policy(context(None, target=3)) == (3, {})


def test_a_replica_that_has_not_reported_counts_as_unknown(policy: PoolLoadPolicy) -> None:
    assert policy(context(0.6, None, target=2)) == (2, {})


def test_serve_finds_and_builds_the_policy_by_its_name() -> None:
    declared = AutoscalingPolicy(
        policy_function="deploy.scaling_policy:PoolLoadPolicy", policy_kwargs={"bounds": BOUNDS.model_dump()}
    )
    found = declared.get_policy()
    assert found(**declared.policy_kwargs)(context(1.0, target=1)) == (2, {})
