"""The autoscaler in a real Ray cluster: reached by name, and nothing of its orders lost with its actor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.errors import BatonError, InvalidRequest, RetryLater
from cluster.scaling.autoscaler import ServedPool
from cluster.scaling.frame import Bounds, ScalingOrders
from cluster.scaling.reports import RouterReport
from tests.cluster.scaling.simulated_load import DECODE, PREFILL, setup_of
from tests.ray_cluster import ray_cluster
from tests.waiting import eventually

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with ray_cluster("seat-test"):
        yield


async def test_orders_survive_the_actor_and_its_errors_reach_the_caller() -> None:
    import ray

    from cluster.scaling.seat import ACTOR_NAME, RaySeat

    router, serve_side, setup = RaySeat("seat-test"), RaySeat("seat-test"), setup_of()

    async def began() -> bool:
        try:
            await router.account()
        except RetryLater:
            return True
        return False

    await eventually(began, within_s=60)
    for role in (PREFILL, DECODE):
        await serve_side.stand(setup, ServedPool(role, 2, 2, 0.0), ScalingOrders())
    with pytest.raises(InvalidRequest, match="not within"):
        await router.order({PREFILL: Bounds(1, 99)})
    ordered = (await router.order({PREFILL: Bounds(3, 5)})).orders
    standing = await serve_side.stand(setup, ServedPool(PREFILL, 2, 2, 0.0), ScalingOrders())
    assert standing.sizes == {PREFILL: 3, DECODE: 2}

    ray.kill(ray.get_actor(ACTOR_NAME, namespace="baton-seat-test"))

    async def came_back() -> bool:
        try:
            await router.hear(RouterReport("router-1"), ordered)
            for role, size in ((PREFILL, 3), (DECODE, 2)):
                standing = await serve_side.stand(setup, ServedPool(role, size, size, 0.0), ScalingOrders())
        except BatonError:
            return False
        return standing.orders == ordered and standing.sizes == {PREFILL: 3, DECODE: 2}

    await eventually(came_back, within_s=60)
