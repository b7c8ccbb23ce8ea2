"""Operators' orders by way of a router: what the autoscaler hears, what the router remembers, how it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.clock import VirtualClock
from cluster.config import RouterConfig, parse_config
from cluster.engine import Role
from cluster.errors import DeadlineExceeded, EngineFailed, InvalidRequest
from cluster.membership import MemoryDirectory
from cluster.scaling.autoscaler import Autoscaler, Moment, ServedPool
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup
from cluster.scaling.reports import RouterReport
from cluster.scaling.seat import MemorySeat
from protos.baton.v1 import admin_pb2, worker_pb2
from router.admin_service import AdminService
from router.fleet import Fleet
from router.scaling_link import ScalingLink
from router.scalings import Scalings
from tests.router.dispatch_parts import parts

PREFILL, DECODE = Role.PREFILL, Role.DECODE
WIRE = {PREFILL: worker_pb2.ROLE_PREFILL, DECODE: worker_pb2.ROLE_DECODE}


def setup_of(**sections: Any) -> ScalingSetup:
    both = {"autoscale": {"min_replicas": 1, "max_replicas": 6}}
    patient = {"queue": {"most_wait_s": 300.0}}
    raw = {"model": {"path": "m"}, "prefill": both, "decode": both, "admission": patient}
    return ScalingSetup.of(parse_config(raw | sections))


class Bench:
    """A router and Serve's side of both pools, on a clock that is moved by hand."""

    def __init__(self, setup: ScalingSetup) -> None:
        self.setup = setup
        self.clock = VirtualClock(100.0)
        self.seat = MemorySeat(lambda: Moment(self.clock.now(), 1_700_000_000.0))
        self.link = ScalingLink(setup, self.seat, self.clock)
        self.scalings = Scalings(self.link)
        self.reports = 0

    def report(self) -> RouterReport:
        self.reports += 1
        return RouterReport("router-1")

    async def stand(self, prefill: int = 1, decode: int = 1) -> None:
        for role, size in ((PREFILL, prefill), (DECODE, decode)):
            await self.seat.stand(self.setup, ServedPool(role, size, size, 0.0), ScalingOrders())

    async def scale(self, **pools: tuple[int, int] | None) -> admin_pb2.AutoscaleReport:
        orders = [order(Role(name), bounds) for name, bounds in pools.items()]
        return await self.scalings.scale(admin_pb2.ScaleRequest(pools=orders))

    async def pause(self, reason: str = "", resume: bool = False) -> admin_pb2.AutoscaleReport:
        return await self.scalings.pause(admin_pb2.PauseAutoscaleRequest(reason=reason, resume=resume))


def order(role: Role, bounds: tuple[int, int] | None) -> admin_pb2.PoolSizeOrder:
    if bounds is None:
        return admin_pb2.PoolSizeOrder(role=WIRE[role], configured=True)
    return admin_pb2.PoolSizeOrder(role=WIRE[role], least=bounds[0], most=bounds[1])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(setup_of())
    await bench.stand()
    bench.link.start(bench.report)
    await bench.clock.advance(0.1)
    yield bench
    await bench.link.close()
    await bench.link.close()


async def test_an_order_is_carried_out_at_once_and_told_back(bench: Bench) -> None:
    report = await bench.scale(prefill=(2, 6), decode=(3, 3))
    prefill, decode = report.pools
    assert (prefill.size, prefill.least, prefill.most, prefill.ordered) == (2, 2, 6, True)
    assert (decode.size, decode.least, decode.most, decode.because) == (3, 3, 3, "1 wanted, 3 to 3 allowed")
    assert [(change.before, change.after) for change in decode.changes] == [(1, 3)]
    assert report.cost == 5.0
    assert not (await bench.scale(prefill=None)).pools[0].ordered


async def test_the_status_says_how_many_are_wanted_of_a_pool_as_far_as_that_is_known() -> None:
    bench = Bench(setup_of(prefill={"autoscale": {"min_replicas": 0, "max_replicas": 6}}, decode={"replicas": 3}))
    fleet = Fleet(RouterConfig(), MemoryDirectory(bench.clock), bench.clock, "router-1", 1, parts(bench.clock.now))
    admin = AdminService(fleet, "router-1", "demo", scalings=bench.scalings)

    async def wanted() -> dict[worker_pb2.Role.ValueType, int | None]:
        pools = (await admin.Status(admin_pb2.StatusRequest(), None)).pools
        return {pool.role: pool.wanted if pool.HasField("wanted") else None for pool in pools}

    assert await wanted() == {WIRE[PREFILL]: None, WIRE[DECODE]: 3}
    await bench.stand(prefill=0, decode=3)
    await bench.scale(prefill=(0, 4))  # the autoscaler's word
    assert await wanted() == {WIRE[PREFILL]: 0, WIRE[DECODE]: 3}


async def test_every_report_brings_the_orders_that_this_router_knows(bench: Bench) -> None:
    await bench.scale(decode=(3, 3))
    bench.seat.autoscaler = Autoscaler()  # lost, and begun anew
    await bench.clock.advance(1.0)
    await bench.stand()
    assert (await bench.seat.account()).orders.bounds == {DECODE: Bounds(3, 3)}


async def test_a_pool_that_may_end_begins_again_for_a_request_that_waits() -> None:
    bench = Bench(setup_of(prefill={"autoscale": {"min_replicas": 0, "max_replicas": 6}}))
    await bench.stand()
    assert bench.link.may_begin(PREFILL)
    await bench.scale(prefill=(1, 4))
    assert not bench.link.may_begin(PREFILL)
    await bench.scale(prefill=(0, 4))
    assert bench.link.may_begin(PREFILL)
    assert not bench.link.may_begin(DECODE)
    await bench.scale(prefill=(0, 0))
    assert not bench.link.may_begin(PREFILL)
    await bench.scale(prefill=None)
    assert bench.link.may_begin(PREFILL)
    await bench.pause()
    assert not bench.link.may_begin(PREFILL)


async def test_a_pool_that_is_wanted_and_does_not_run_yet_is_beginning_whatever_its_bounds() -> None:
    bench = Bench(setup_of(prefill={"autoscale": {"min_replicas": 0, "max_replicas": 6}}))
    await bench.stand(prefill=0)
    await bench.scale(prefill=(2, 2))
    assert bench.link.may_begin(PREFILL)
    assert not bench.link.may_begin(DECODE)
    await bench.stand(prefill=2)
    bench.link.start(bench.report)
    await bench.clock.advance(1.1)
    assert not bench.link.may_begin(PREFILL)
    await bench.link.close()


async def test_another_routers_order_is_heard_with_the_next_report(bench: Bench) -> None:
    await bench.seat.order({PREFILL: Bounds(2, 4)})
    await bench.clock.advance(1.0)
    bench.seat.autoscaler = Autoscaler()
    await bench.clock.advance(1.0)
    await bench.stand()
    assert (await bench.seat.account()).orders.bounds == {PREFILL: Bounds(2, 4)}


async def test_a_pause_and_its_end_are_told_with_the_reason(bench: Bench) -> None:
    paused = await bench.pause("audit")
    assert (paused.paused, paused.pause_reason) == (True, "audit")
    assert paused.pools[0].because == "paused: audit"
    assert not (await bench.pause(resume=True)).paused


async def test_what_is_shown_has_inputs_needs_and_the_routers_that_report(bench: Bench) -> None:
    await bench.clock.advance(1.0)
    await bench.stand()
    told = await bench.scalings.report()
    assert list(told.router_age_s) == ["router-1"]
    assert {need.rule for need in told.pools[0].needs} == {"flow", "queue"}
    assert told.pools[1].inputs["sequences"] == 0.0


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ({}, "name a pool"),
        ({"prefill": (2, 9)}, "not within 1..6"),
    ],
)
async def test_an_order_that_cannot_be_is_refused(bench: Bench, pools: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await bench.scale(**pools)


async def test_a_pool_named_twice_is_refused(bench: Bench) -> None:
    twice = [order(PREFILL, (1, 2)), order(PREFILL, (2, 2))]
    with pytest.raises(InvalidRequest, match="twice"):
        await bench.scalings.scale(admin_pb2.ScaleRequest(pools=twice))


async def test_pools_of_fixed_size_are_shown_and_nothing_of_them_can_be_ordered() -> None:
    bench = Bench(setup_of(prefill={"replicas": 2}, decode={"replicas": 3}))
    bench.link.start(bench.report)
    told = await bench.scalings.report()
    assert [(pool.size, pool.scales) for pool in told.pools] == [(2, False), (3, False)]
    with pytest.raises(InvalidRequest, match="fixed size"):
        await bench.scale(prefill=(1, 3))
    with pytest.raises(InvalidRequest, match="no pool scales"):
        await bench.pause()
    assert bench.reports == 0
    bench.link.check()


async def test_an_autoscaler_that_is_away_is_tried_again_and_its_last_word_holds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> Any:
        raise DeadlineExceeded("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(bench.seat, "hear", away)
        await bench.clock.advance(3.0)
    before = bench.reports
    await bench.clock.advance(2.0)
    assert bench.reports > before
    bench.link.check()


async def test_a_task_that_has_died_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.seat, "hear", broken)
    await bench.clock.advance(2.0)
    with pytest.raises(EngineFailed, match="report to the autoscaler"):
        bench.link.check()
    task, bench.link._task = bench.link._task, None
    assert task is not None
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(task, 1)
