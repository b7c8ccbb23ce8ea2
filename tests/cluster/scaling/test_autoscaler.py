"""Who hears what from the autoscaler, and what it remembers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.engine import Role
from cluster.errors import InvalidRequest, RetryLater
from cluster.scaling.autoscaler import Autoscaler, Moment, ServedPool, Standing
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup
from cluster.scaling.reports import RouterReport, WorkerSight
from tests.cluster.scaling.simulated_load import DECODE, PREFILL, setup_of


class Bench:
    def __init__(self, **setup: Any) -> None:
        self.autoscaler = Autoscaler()
        self.setup = setup_of(**setup)
        self.now = 50.0
        self.known = ScalingOrders()

    @property
    def moment(self) -> Moment:
        return Moment(self.now, 1_700_000_000 + self.now)

    def hear(self, router_id: str = "router-1", orders: ScalingOrders | None = None, **report: Any) -> Standing | None:
        return self.autoscaler.hear(RouterReport(router_id, **report), orders or self.known, self.moment)

    def stand(self, sizes: dict[Role, int], after_s: float = 1.0) -> Standing:
        """Serve's side of both pools."""
        self.now += after_s
        return self.stand_of(self.setup, sizes)

    def stand_of(self, setup: ScalingSetup, sizes: dict[Role, int], born: float = 0.0) -> Standing:
        """What the policies say that were built then, with that setup."""
        for role, size in sizes.items():
            standing = self.autoscaler.stand(setup, ServedPool(role, size, size, born), self.known, self.moment)
        return standing


def test_it_begins_with_the_sizes_that_it_finds_once_every_pool_has_come() -> None:
    bench = Bench()
    assert bench.hear() is None
    assert bench.stand({PREFILL: 3}).sizes is None
    assert bench.stand({PREFILL: 3, DECODE: 2}).sizes == {PREFILL: 3, DECODE: 2}


def test_a_pool_of_fixed_size_need_not_come() -> None:
    bench = Bench(decode={"replicas": 4})
    assert bench.stand({PREFILL: 3}).sizes == {PREFILL: 3, DECODE: 4}


def test_before_the_pools_are_known_operators_are_asked_to_come_back() -> None:
    autoscaler = Autoscaler()
    for ask in (autoscaler.account, lambda now: autoscaler.order({PREFILL: Bounds(1, 1)}, now)):
        with pytest.raises(RetryLater):
            ask(Moment(1.0, 1.0))


def test_it_decides_once_a_period_however_often_it_is_asked() -> None:
    bench = Bench()
    bench.stand({PREFILL: 1, DECODE: 1})
    bench.hear(waiting_requests=90, waiting_tokens=90_000.0, in_flight=90)
    bench.stand({PREFILL: 1, DECODE: 1}, after_s=0.5)
    assert bench.autoscaler.account(bench.moment).decided_s == 0.5
    bench.stand({PREFILL: 1, DECODE: 1}, after_s=0.5)
    assert bench.autoscaler.account(bench.moment).decided_s == 0.0


def test_an_order_acts_at_once_and_is_among_the_changes_with_its_time() -> None:
    bench = Bench()
    bench.stand({PREFILL: 1, DECODE: 1})
    bench.hear()
    assert bench.autoscaler.order({DECODE: Bounds(4, 4)}, bench.moment).sizes == {PREFILL: 1, DECODE: 4}
    pool = bench.autoscaler.account(bench.moment).pools[DECODE]
    assert [(change.before, change.after, change.unix_s) for change in pool.changes] == [(1, 4, 1_700_000_051.0)]
    assert pool.ordered
    assert not bench.autoscaler.account(bench.moment).pools[PREFILL].ordered


def test_an_order_that_cannot_be_changes_nothing() -> None:
    bench = Bench()
    bench.stand({PREFILL: 1, DECODE: 1})
    with pytest.raises(InvalidRequest):
        bench.autoscaler.order({DECODE: Bounds(4, 40)}, bench.moment)
    assert bench.autoscaler.account(bench.moment).orders == ScalingOrders()


def test_orders_come_back_from_whoever_remembers_the_newest() -> None:
    newest = ScalingOrders(7, {PREFILL: Bounds(5, 5)}, paused="audit")
    bench = Bench()
    bench.hear("router-1", ScalingOrders(3, {PREFILL: Bounds(2, 2)}))
    bench.hear("router-2", newest)
    bench.hear("router-1", ScalingOrders(3, {PREFILL: Bounds(2, 2)}))
    standing = bench.stand({PREFILL: 1, DECODE: 1})
    assert standing.orders == newest
    assert standing.bounds[PREFILL] == Bounds(5, 5)
    assert standing.sizes == {PREFILL: 5, DECODE: 1}


def test_a_router_that_is_gone_for_long_holds_nothing_back_any_more() -> None:
    bench = Bench(pace={"down_after_s": 5.0, "down_cooldown_s": 1.0})
    sizes = {PREFILL: 3, DECODE: 3}
    bench.hear("router-2")
    for _ in range(25):
        bench.hear("router-1")
        assert bench.stand(sizes).sizes == sizes
    for _ in range(30):
        bench.hear("router-1")
        bench.stand(sizes)
    assert bench.stand(sizes).sizes == {PREFILL: 1, DECODE: 1}
    assert list(bench.autoscaler.account(bench.moment).routers) == ["router-1"]


def test_a_pause_has_a_reason_and_an_end() -> None:
    bench = Bench()
    bench.stand({PREFILL: 1, DECODE: 1})
    assert bench.autoscaler.pause("audit", bench.moment).orders.paused == "audit"
    assert bench.autoscaler.pause(None, bench.moment).orders == ScalingOrders(2)


@pytest.mark.parametrize("silent_s", [4, 10, 25, 40])
def test_a_router_that_reports_again_after_a_silence_is_no_burst(silent_s: int) -> None:
    bench = Bench()
    workers = tuple(WorkerSight(f"p{n}", PREFILL, True, 0.0, 1_000.0, 0.0, 0.0, 0.01, 0.001) for n in range(2))
    sizes: dict[Role, int] = {PREFILL: 1, DECODE: 1}
    seen = []
    for second in range(120):
        if not 60 <= second < 60 + silent_s:
            bench.hear(arrived_requests=2 * second, arrived_tokens=1_000.0 * second, workers=workers)
        sizes = dict(bench.stand(sizes).sizes or sizes)
        seen.append(sizes[PREFILL])
    assert max(seen[60:]) <= seen[59]


# After a deployment: Serve has built new policies, and the ones before go on asking for a while


@pytest.mark.parametrize(("most", "new_most"), [(2, 8), (8, 2)])
def test_bounds_of_a_new_deployment_hold_from_its_first_word_on_whoever_else_still_asks(
    most: int, new_most: int
) -> None:
    bench = Bench(prefill={"autoscale": {"max_replicas": most}})
    new = setup_of(prefill={"autoscale": {"max_replicas": new_most}})
    workers = tuple(WorkerSight(f"p{n}", PREFILL, True, 0.0, 1_000.0, 0.0, 0.0, 0.01, 0.001) for n in range(2))
    sizes: dict[Role, int] = {PREFILL: 2, DECODE: 1}
    seen = []
    for second in range(60):
        bench.hear(arrived_requests=8 * second, arrived_tokens=4_100.0 * second, workers=workers)  # six are needed
        bench.now += 1.0
        sizes = dict(bench.stand_of(bench.setup, sizes, born=1.0).sizes or sizes)
        if second >= 30:
            sizes = dict(bench.stand_of(new, sizes, born=2.0).sizes or sizes)
        seen.append(sizes[PREFILL])
    assert min(6, most) <= seen[29] <= most
    assert max(seen[31:]) <= new_most
    assert min(seen[35:]) >= min(6, new_most)


def test_of_a_pool_only_the_newest_policy_tells_the_size_and_the_older_one_hears_that_it_was_replaced() -> None:
    bench = Bench()
    assert not bench.stand_of(bench.setup, {PREFILL: 1, DECODE: 1}, born=1.0).replaced
    assert not bench.stand_of(bench.setup, {PREFILL: 3}, born=2.0).replaced
    assert bench.stand_of(bench.setup, {PREFILL: 1}, born=1.0).replaced
    assert not bench.stand_of(bench.setup, {DECODE: 2}, born=1.0).replaced
    running = {role: pool.running for role, pool in bench.autoscaler.account(bench.moment).pools.items()}
    assert running == {PREFILL: 3, DECODE: 2}


def test_a_policy_of_a_machine_whose_clock_is_behind_counts_once_the_one_before_is_silent() -> None:
    bench = Bench()
    bench.stand_of(bench.setup, {PREFILL: 1, DECODE: 1}, born=900.0)
    elsewhere = setup_of(prefill={"autoscale": {"min_replicas": 4, "max_replicas": 10}})
    bench.now += 5.0
    assert bench.stand_of(elsewhere, {PREFILL: 1, DECODE: 1}, born=3.0).sizes == {PREFILL: 1, DECODE: 1}
    bench.now += 10.0
    after = bench.stand_of(elsewhere, {PREFILL: 1, DECODE: 1}, born=3.0)
    assert (after.sizes, after.replaced) == ({PREFILL: 4, DECODE: 1}, False)
