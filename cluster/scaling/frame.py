"""Within what the sizes of both pools may move: bounds by configuration or by order, costs and the budget.

Plain values; who orders, and what is wanted within the frame, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from cluster.config import Config, PoolConfig
from cluster.config_scaling import AutoscalingConfig
from cluster.engine import Role
from cluster.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Bounds:
    """Replicas, both included."""

    least: int
    most: int

    def clamp(self, replicas: int) -> int:
        return min(max(replicas, self.least), self.most)


@dataclass(frozen=True, slots=True)
class PoolFrame:
    """`configured` is what the configuration allows; `cost`: of one replica. A pool that is not `scales` has a fixed
    size."""

    configured: Bounds
    cost: float
    scales: bool


@dataclass(frozen=True, slots=True)
class ScalingSetup:
    """All that the autoscaler must know of a configuration. `start_deadline_s`: a worker that takes longer to start has
    failed."""

    pools: Mapping[Role, PoolFrame]
    rule: AutoscalingConfig
    start_deadline_s: float

    @classmethod
    def of(cls, config: Config) -> ScalingSetup:
        pools = {role: _frame(config.pool(role)) for role in Role}
        return cls(pools, config.autoscaling, config.engine.start_deadline_s)

    @classmethod
    def parsed(cls, document: Mapping[str, Any]) -> ScalingSetup:
        """What `document` gave."""
        return TypeAdapter(cls).validate_python(document)

    @property
    def document(self) -> dict[str, Any]:
        """As plain JSON, for whoever carries it to another process."""
        document: dict[str, Any] = TypeAdapter(ScalingSetup).dump_python(self, mode="json")
        return document

    @property
    def scales(self) -> bool:
        return any(pool.scales for pool in self.pools.values())

    def cost(self, replicas: Mapping[Role, int]) -> float:
        return sum(count * self.pools[role].cost for role, count in replicas.items())


@dataclass(frozen=True, slots=True)
class ScalingOrders:
    """What operators have ordered. `version` grows with every order, so that the newest is known wherever it is kept.
    `bounds` take the place of the configured ones; `paused`: why sizes stay as they are, None: they do not."""

    version: int = 0
    bounds: Mapping[Role, Bounds] = field(default_factory=dict)
    paused: str | None = None


def effective_bounds(setup: ScalingSetup, orders: ScalingOrders) -> dict[Role, Bounds]:
    """Orders that were given under another configuration count as far as this one allows."""
    bounds = {}
    for role, pool in setup.pools.items():
        frame, ordered = pool.configured, orders.bounds.get(role)
        bounds[role] = frame if ordered is None else Bounds(frame.clamp(ordered.least), frame.clamp(ordered.most))
    least = {role: each.least for role, each in bounds.items()}
    if setup.rule.budget is not None and setup.cost(least) > setup.rule.budget:
        return {role: pool.configured for role, pool in setup.pools.items()}
    return bounds


def checked_order(setup: ScalingSetup, orders: ScalingOrders, wanted: Mapping[Role, Bounds | None]) -> ScalingOrders:
    """The orders after this one; None: back to the configured bounds. Raises `InvalidRequest` with what is possible."""
    bounds = dict(orders.bounds)
    for role, ordered in wanted.items():
        pool, name = setup.pools[role], role.value
        if not pool.scales:
            raise InvalidRequest(
                f"pool {name} has a fixed size, {pool.configured.most}: set {name}.autoscale in the configuration"
            )
        if ordered is None:
            bounds.pop(role, None)
            continue
        least, most = pool.configured.least, pool.configured.most
        if not least <= ordered.least <= ordered.most <= most:
            raise InvalidRequest(
                f"{name}={ordered.least}..{ordered.most} is not within {least}..{most}, what {name}.autoscale of the "
                "configuration allows"
            )
        bounds[role] = ordered
    _check_budget(setup, bounds)
    return ScalingOrders(orders.version + 1, bounds, orders.paused)


def _check_budget(setup: ScalingSetup, ordered: Mapping[Role, Bounds]) -> None:
    budget = setup.rule.budget
    least = {role: ordered.get(role, pool.configured).least for role, pool in setup.pools.items()}
    if budget is not None and (cost := setup.cost(least)) > budget:
        sizes = ", ".join(f"{role.value} {count}" for role, count in least.items())
        raise InvalidRequest(f"at least {sizes} cost {cost:g}, more than autoscaling.budget {budget:g}")


def _frame(pool: PoolConfig) -> PoolFrame:
    bounds = pool.autoscale
    fixed = Bounds(pool.replicas, pool.replicas)
    configured = fixed if bounds is None else Bounds(bounds.min_replicas, bounds.max_replicas)
    return PoolFrame(configured, pool.replica_cost, bounds is not None)
