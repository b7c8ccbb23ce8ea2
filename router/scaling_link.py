"""This router's tie to the autoscaler: reports once a period, and knows what sizes the pools may have.

Owns the task that does so. While the autoscaler is away the last word holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cluster.clock import Clock
from cluster.engine import Role
from cluster.errors import BatonError, EngineFailed, InvalidRequest
from cluster.scaling.autoscaler import Account, Standing, fixed_account
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup, checked_order, effective_bounds
from cluster.scaling.reports import RouterReport
from cluster.scaling.seat import ScalingSeat
from router.task_end import end_tasks

logger = logging.getLogger(__name__)


class ScalingLink:
    """`start` and `close` are called once each."""

    def __init__(self, setup: ScalingSetup, seat: ScalingSeat, clock: Clock) -> None:
        self._setup = setup
        self._seat = seat
        self._clock = clock
        self._orders = ScalingOrders()
        self._bounds: Mapping[Role, Bounds] = effective_bounds(setup, self._orders)
        self._starting: frozenset[Role] = frozenset()
        self.sizes: Mapping[Role, int] = {
            role: size.least for role, size in self._bounds.items() if size.least == size.most
        }
        """Wanted of each pool, at the autoscaler's last word; before the first, of those that have no choice."""
        self._task: asyncio.Task[None] | None = None

    def may_begin(self, role: Role) -> bool:
        """Whether the pool is beginning, or is at zero and begins again for a request that waits."""
        bounds, pool = self._bounds[role], self._setup.pools[role]
        sleeps = bounds.least == 0 < bounds.most and self._orders.paused is None
        return pool.scales and (sleeps or role in self._starting)

    def start(self, report: Callable[[], RouterReport]) -> None:
        """Where every pool has a fixed size, there is nobody to report to."""
        if self._setup.scales:
            self._task = asyncio.create_task(self._keep_reporting(report), name="report to the autoscaler")

    def check(self) -> None:
        """Raises `EngineFailed` when the background task has ended."""
        if self._task is not None and self._task.done():
            raise EngineFailed(f"the router's task to {self._task.get_name()} has ended")

    async def close(self) -> None:
        """May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])

    # Operators' orders. All raise `DeadlineExceeded`

    async def order(self, bounds: Mapping[Role, Bounds | None]) -> None:
        """None: as configured. Raises `InvalidRequest`, `RetryLater`."""
        checked_order(self._setup, self._orders, bounds)  # a mistake is told even where nothing scales
        self._heard(await self._seat.order(bounds))

    async def pause(self, reason: str | None) -> None:
        """None: no longer. Raises `InvalidRequest`, `RetryLater`."""
        if not self._setup.scales:
            raise InvalidRequest("no pool scales by itself: set prefill.autoscale or decode.autoscale")
        self._heard(await self._seat.pause(reason))

    async def account(self) -> Account:
        """Raises `RetryLater`."""
        return await self._seat.account() if self._setup.scales else fixed_account(self._setup)

    def _heard(self, standing: Standing) -> None:
        self._orders, self._bounds, self._starting = standing.orders, standing.bounds, standing.starting
        self.sizes = standing.sizes or self.sizes

    async def _keep_reporting(self, report: Callable[[], RouterReport]) -> None:
        away = False
        while True:
            try:
                if standing := await self._seat.hear(report(), self._orders):
                    self._heard(standing)
                away = False
            except BatonError as error:
                if not away:
                    logger.warning("the autoscaler does not hear this router: %s", error)
                away = True
            await self._clock.sleep(self._setup.rule.period_s)
