"""The policy as Serve calls it: built from JSON, given Serve's own context, never in the way of its loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.config import parse_config
from cluster.engine import Role
from cluster.errors import DeadlineExceeded
from cluster.pool_options import serve_options
from cluster.scaling.autoscaler import Moment
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup
from cluster.scaling.reports import RouterReport
from cluster.scaling.seat import MemorySeat
from deploy.app import POOL_SIZE_POLICY
from deploy.scaling_policy import PoolSizePolicy

CONFIG = parse_config({"model": {"path": "m"}, "prefill": {"autoscale": {"max_replicas": 8}}})
SETUP = ScalingSetup.of(CONFIG)
PREFILL = DeploymentID(name="prefill", app_name="baton")


def context(wanted: int, running: int | None = None) -> AutoscalingContext:
    options = serve_options(CONFIG, Role.PREFILL, POOL_SIZE_POLICY)["autoscaling_config"]
    replicas = [ReplicaID(str(at), PREFILL) for at in range(wanted if running is None else running)]
    return AutoscalingContext(
        deployment_id=PREFILL,
        deployment_name="prefill",
        app_name="baton",
        current_num_replicas=len(replicas),
        target_num_replicas=wanted,
        running_replicas=replicas,
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics=dict,
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(**options),
    )


class Bench:
    """An autoscaler in memory, on a clock that stands still until it is moved. No thread runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.seat = MemorySeat(lambda: Moment(self.now, self.now))
        self.policy = self.new_policy()
        monkeypatch.setattr(PoolSizePolicy, "_fetch", lambda policy: None)

    def new_policy(self) -> PoolSizePolicy:
        return PoolSizePolicy("baton", "prefill", SETUP.document, lambda name: self.seat, lambda: self.now)

    def wants(self, context: AutoscalingContext) -> int:
        size, state = self.policy(context)
        assert state == {}
        return size


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_before_the_first_answer_a_pool_keeps_its_size(bench: Bench) -> None:
    assert bench.wants(context(3)) == 3


async def test_the_autoscalers_word_is_the_size(bench: Bench) -> None:
    bench.wants(context(2))
    await bench.policy.fetch()
    assert bench.wants(context(2)) == 2
    await bench.seat.order({Role.PREFILL: Bounds(5, 5)})
    await bench.policy.fetch()
    assert bench.wants(context(2)) == 5
    assert (await bench.seat.account()).pools[Role.PREFILL].running == 2


async def test_a_size_that_serve_forgot_in_a_new_deployment_comes_back(bench: Bench) -> None:
    bench.wants(context(4))
    await bench.policy.fetch()
    bench.policy = bench.new_policy()
    bench.wants(context(1))
    await bench.policy.fetch()
    assert bench.wants(context(1)) == 4


async def test_a_policy_that_a_new_deployment_has_replaced_stops_asking_soon(bench: Bench) -> None:
    before = bench.policy
    bench.wants(context(2))
    await before.fetch()
    bench.now += 1.0
    bench.policy = bench.new_policy()
    bench.wants(context(2))
    await bench.policy.fetch()
    await before.fetch()
    assert not before.forgotten, "Serve may only be slow to ask again"
    bench.now += 1.5
    assert (before.forgotten, bench.policy.forgotten) == (True, False)
    before(context(2))
    assert not before.forgotten, "it is asked, so it is nobody's past"


async def test_an_answer_that_is_too_old_moves_nothing(bench: Bench) -> None:
    bench.wants(context(2))
    await bench.policy.fetch()
    await bench.seat.order({Role.PREFILL: Bounds(5, 5)})
    await bench.policy.fetch()
    bench.now += 60
    assert bench.wants(context(3)) == 3


async def test_orders_come_back_to_an_autoscaler_that_was_lost(bench: Bench) -> None:
    bench.wants(context(2))
    await bench.policy.fetch()
    await bench.seat.order({Role.PREFILL: Bounds(5, 5)})
    await bench.policy.fetch()
    bench.seat.autoscaler.__init__()  # type: ignore[misc]  # as the actor begins anew
    await bench.policy.fetch()
    assert (await bench.seat.account()).orders == ScalingOrders(1, {Role.PREFILL: Bounds(5, 5)})
    assert bench.wants(context(5)) == 5


async def test_an_autoscaler_that_does_not_answer_is_told_to_nobody_but_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> Any:
        raise DeadlineExceeded("the autoscaler did not answer")

    monkeypatch.setattr(bench.seat, "stand", away)
    bench.wants(context(2))
    with pytest.raises(DeadlineExceeded):
        await bench.policy.fetch()
    assert bench.wants(context(2)) == 2


def test_the_thread_that_asks_ends_when_serve_no_longer_does() -> None:
    now = [0.0]
    policy = PoolSizePolicy("baton", "prefill", SETUP.document, lambda name: MemorySeat(moment), lambda: now[0])
    policy(context(2))
    thread = policy._thread
    assert thread is not None
    now[0] = 100.0
    thread.join(10)
    assert not thread.is_alive()
    policy(context(2))
    assert policy._thread is not thread
    now[0] = 200.0


def moment() -> Moment:
    return Moment(1.0, 1.0)


# What of Ray this stands on


def served() -> Any:
    """What Serve's controller calls, made from the options of the deployment as it does."""
    options = serve_options(CONFIG, Role.PREFILL, POOL_SIZE_POLICY)["autoscaling_config"]
    return _resolve_policy_callable(AutoscalingConfig(**options).policy)


def test_serve_finds_the_policy_by_its_name_and_builds_it_once() -> None:
    policy = served()
    assert type(policy).__name__ == "PoolSizePolicy"
    assert callable(policy)


@pytest.mark.parametrize(("wanted", "answer"), [(1, 0), (0, 2), (3, 8), (8, 7), (2, 2)])
def test_serve_carries_out_the_answer_at_once_and_as_it_is(wanted: int, answer: int) -> None:
    carried_out, _ = _apply_autoscaling_config(lambda _: (answer, {}))(context(wanted))
    assert carried_out == answer


def test_serve_goes_to_zero_by_way_of_one() -> None:
    assert _apply_autoscaling_config(lambda _: (0, {}))(context(3))[0] == 1


def test_the_context_says_what_the_policy_reads() -> None:
    assert {"target_num_replicas", "current_num_replicas"} <= vars(context(1)).keys() | dir(AutoscalingContext)


async def test_a_report_that_is_no_number_is_no_error(bench: Bench) -> None:
    bench.wants(context(2))
    await bench.seat.hear(RouterReport("router-1", waiting_tokens=math.nan), ScalingOrders())
    await bench.policy.fetch()
    assert bench.wants(context(2)) == 2
