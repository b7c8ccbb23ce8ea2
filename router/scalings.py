"""What an operator asks and orders of the autoscaler: the sizes of pools, and why they are what they are.

Turns the admin API's messages into calls and accounts into messages. It must not know how a size is decided.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.engine import Role
from cluster.errors import InvalidRequest
from cluster.scaling.autoscaler import Account, PoolAccount
from cluster.scaling.frame import Bounds
from cluster.wire import role_from_wire, role_to_wire
from protos.baton.v1 import admin_pb2
from router.scaling_link import ScalingLink


class Scalings:
    """All raise `InvalidRequest`, `RetryLater`, `DeadlineExceeded`."""

    def __init__(self, link: ScalingLink) -> None:
        self._link = link

    @property
    def sizes(self) -> Mapping[Role, int]:
        """Wanted of each pool, as far as it is known; at once."""
        return self._link.sizes

    async def scale(self, request: admin_pb2.ScaleRequest) -> admin_pb2.AutoscaleReport:
        if not request.pools:
            raise InvalidRequest("name a pool and its sizes, such as prefill 2 to 6")
        orders: dict[Role, Bounds | None] = {}
        for pool in request.pools:
            role = role_from_wire(pool.role)
            if role in orders:
                raise InvalidRequest(f"pool {role.value} is named twice")
            orders[role] = None if pool.configured else Bounds(pool.least, pool.most)
        await self._link.order(orders)
        return await self.report()

    async def report(self) -> admin_pb2.AutoscaleReport:
        return autoscale_report(await self._link.account())

    async def pause(self, request: admin_pb2.PauseAutoscaleRequest) -> admin_pb2.AutoscaleReport:
        await self._link.pause(None if request.resume else request.reason)
        return await self.report()


def autoscale_report(account: Account) -> admin_pb2.AutoscaleReport:
    paused = account.orders.paused
    return admin_pb2.AutoscaleReport(
        pools=[_pool(role, pool) for role, pool in account.pools.items()],
        paused=paused is not None,
        pause_reason=paused or "",
        decided_s=account.decided_s,
        cost=account.cost,
        budget=account.budget,
        router_age_s=dict(account.routers),
    )


def _pool(role: Role, pool: PoolAccount) -> admin_pb2.PoolScaling:
    decision = pool.decision
    inputs: Mapping[str, float] = {} if decision is None else decision.inputs
    return admin_pb2.PoolScaling(
        role=role_to_wire(role),
        size=pool.bounds.least if decision is None else decision.size,
        running=pool.running,
        least=pool.bounds.least,
        most=pool.bounds.most,
        scales=pool.scales,
        ordered=pool.ordered,
        because=_because(pool),
        inputs=dict(inputs),
        needs=[
            admin_pb2.ScalingNeed(rule=need.rule, workers=need.workers, because=need.because)
            for need in (() if decision is None else decision.needs)
        ],
        limits=[
            admin_pb2.ScalingLimit(name=limit.name, size=limit.to, because=limit.because)
            for limit in (() if decision is None else decision.limits)
        ],
        changes=[
            admin_pb2.ScalingChange(
                unix_s=change.unix_s, before=change.before, after=change.after, because=change.because
            )
            for change in pool.changes
        ],
    )


def _because(pool: PoolAccount) -> str:
    if not pool.scales:
        return "its size is fixed by the configuration"
    return "nothing has been decided yet" if pool.decision is None else pool.decision.because
