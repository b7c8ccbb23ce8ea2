"""Where the autoscaler of a cluster sits: a detached actor that routers report to and Serve's side asks.

A lost actor begins anew with the sizes that it finds and the orders that its callers remember. The actor answers with
errors instead of raising them; the seat raises them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from cluster.engine import Role
from cluster.errors import BatonError
from cluster.named_actor import NamedActor
from cluster.scaling.autoscaler import Account, Autoscaler, Moment, ServedPool, Standing
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup
from cluster.scaling.reports import RouterReport

Answered = TypeVar("Answered")

ACTOR_NAME = "autoscaler"
_CALL_S = 3.0


class ScalingSeat(Protocol):
    """What routers and Serve's side do with the autoscaler. Every call raises `DeadlineExceeded`."""

    async def hear(self, report: RouterReport, orders: ScalingOrders) -> Standing | None: ...

    async def stand(self, setup: ScalingSetup, pool: ServedPool, orders: ScalingOrders) -> Standing: ...

    async def order(self, bounds: Mapping[Role, Bounds | None]) -> Standing:
        """Raises `InvalidRequest`, `RetryLater`."""
        ...

    async def pause(self, reason: str | None) -> Standing:
        """Raises `RetryLater`."""
        ...

    async def account(self) -> Account:
        """Raises `RetryLater`."""
        ...


class MemorySeat:
    """An autoscaler inside one process: for tests, simulations, and clusters in which nothing scales."""

    def __init__(self, moment: Callable[[], Moment]) -> None:
        self.autoscaler = Autoscaler()
        self._moment = moment

    async def hear(self, report: RouterReport, orders: ScalingOrders) -> Standing | None:
        return self.autoscaler.hear(report, orders, self._moment())

    async def stand(self, setup: ScalingSetup, pool: ServedPool, orders: ScalingOrders) -> Standing:
        return self.autoscaler.stand(setup, pool, orders, self._moment())

    async def order(self, bounds: Mapping[Role, Bounds | None]) -> Standing:
        return self.autoscaler.order(bounds, self._moment())

    async def pause(self, reason: str | None) -> Standing:
        return self.autoscaler.pause(reason, self._moment())

    async def account(self) -> Account:
        return self.autoscaler.account(self._moment())


class AutoscalerActor:
    """Runs inside the actor: all calls on one event loop, one after the other."""

    def __init__(self) -> None:
        self._autoscaler = Autoscaler()

    async def hear(self, report: RouterReport, orders: ScalingOrders) -> Standing | BatonError | None:
        return _answer(lambda: self._autoscaler.hear(report, orders, real_moment()))

    async def stand(self, setup: ScalingSetup, pool: ServedPool, orders: ScalingOrders) -> Standing | BatonError:
        return _answer(lambda: self._autoscaler.stand(setup, pool, orders, real_moment()))

    async def order(self, bounds: Mapping[Role, Bounds | None]) -> Standing | BatonError:
        return _answer(lambda: self._autoscaler.order(bounds, real_moment()))

    async def pause(self, reason: str | None) -> Standing | BatonError:
        return _answer(lambda: self._autoscaler.pause(reason, real_moment()))

    async def account(self) -> Account | BatonError:
        return _answer(lambda: self._autoscaler.account(real_moment()))


class RaySeat:
    """Implements `ScalingSeat` for any process that is connected to the Ray cluster."""

    def __init__(self, cluster_name: str) -> None:
        self._actor = NamedActor(ACTOR_NAME, cluster_name, AutoscalerActor)

    async def hear(self, report: RouterReport, orders: ScalingOrders) -> Standing | None:
        standing: Standing | None = await self._ask("hear", report, orders)
        return standing

    async def stand(self, setup: ScalingSetup, pool: ServedPool, orders: ScalingOrders) -> Standing:
        standing: Standing = await self._ask("stand", setup, pool, orders)
        return standing

    async def order(self, bounds: Mapping[Role, Bounds | None]) -> Standing:
        standing: Standing = await self._ask("order", bounds)
        return standing

    async def pause(self, reason: str | None) -> Standing:
        standing: Standing = await self._ask("pause", reason)
        return standing

    async def account(self) -> Account:
        account: Account = await self._ask("account")
        return account

    async def _ask(self, method: str, *arguments: Any) -> Any:
        answer = await self._actor.call(method, *arguments, deadline_s=_CALL_S)
        if isinstance(answer, BatonError):
            raise answer
        return answer


def real_moment() -> Moment:
    return Moment(time.monotonic(), time.time())


def _answer(answer: Callable[[], Answered]) -> Answered | BatonError:
    try:
        return answer()
    except BatonError as error:
        return error
