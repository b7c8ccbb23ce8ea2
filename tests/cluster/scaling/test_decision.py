"""The size of both pools: what each need leads to, and what never happens whatever is seen."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine import Role
from cluster.scaling.frame import Bounds, ScalingOrders
from cluster.scaling.reports import PoolSight, Sight
from tests.cluster.scaling.simulated_load import DECODE, PREFILL, Course, constant, setup_of, sight, sleeper

SETTLING_S = 400

few = settings(max_examples=20)  # each is minutes of the pools' time

amounts = st.floats(min_value=0, max_value=50_000) | st.sampled_from([math.nan, math.inf])
sights = st.builds(
    lambda tokens, waiting, sequences, kv, blind, silent: Sight(
        pools={
            PREFILL: PoolSight(2, 2, waiting, 0.0, 0.0, 1_000.0, 0.01, 0.001),
            DECODE: PoolSight(2, 1, 0.0, sequences, kv, 1_000.0, 0.01, 0.001),
        },
        arrived_requests=3,
        arrived_tokens=tokens,
        blind=blind,
        silent=silent,
    ),
    amounts,
    amounts,
    amounts,
    amounts,
    st.booleans(),
    st.sampled_from([(), ("router-1",)]),
)
pauses = st.floats(min_value=0.01, max_value=120)


@st.composite
def setups(draw: Any) -> Any:
    def pool() -> dict[str, Any]:
        least = draw(st.integers(0, 3))
        bounds = {"min_replicas": least, "max_replicas": draw(st.integers(max(least, 1), 8))}
        return {"autoscale": bounds | {"cost": draw(st.sampled_from([1.0, 2.0, 0.5]))}}

    prefill, decode = pool(), pool()
    least = sum(each["autoscale"]["min_replicas"] * each["autoscale"]["cost"] for each in (prefill, decode))
    budget = draw(st.none() | st.floats(min_value=max(least, 0.5), max_value=30))
    ratio = draw(st.sampled_from([{}, {"ratio_most": 2.0}, {"ratio_least": 0.5, "ratio_most": 1.5}]))
    return setup_of(prefill, decode, budget=budget, **ratio)


# Never


@given(setups(), st.lists(st.tuples(sights, pauses), max_size=30))
def test_sizes_are_always_within_bounds_and_budget(setup: Any, course: list[tuple[Sight, float]]) -> None:
    run = Course(setup, {role: pool.configured.least for role, pool in setup.pools.items()})
    for seen, after_s in course:
        sizes = run.look(seen, after_s)
        for role, pool in setup.pools.items():
            assert pool.configured.least <= sizes[role] <= pool.configured.most
        assert setup.rule.budget is None or setup.cost(sizes) <= setup.rule.budget + 1e-6


@given(setups(), st.lists(st.tuples(sights, pauses), max_size=30))
def test_no_pool_changes_by_more_than_a_step(setup: Any, course: list[tuple[Sight, float]]) -> None:
    run = Course(setup, {role: pool.configured.least for role, pool in setup.pools.items()})
    for seen, after_s in course:
        before, after = run.sizes, run.look(seen, after_s)
        for role in Role:
            assert before[role] - setup.rule.pace.step_down <= after[role] <= before[role] + setup.rule.pace.step_up


@few
@given(st.floats(min_value=0, max_value=12_000), st.floats(min_value=0, max_value=300))
def test_constant_load_settles_and_then_nothing_changes(tokens: float, sequences: float) -> None:
    run = Course(setup_of())
    run.run(SETTLING_S, constant(tokens, sequences))
    after = run.run(300, constant(tokens, sequences))
    assert all(sizes == after[0] for sizes in after)


@few
@given(st.integers(1, 8), st.floats(min_value=-0.1, max_value=0.1), st.integers(2, 30))
def test_load_that_swings_around_a_boundary_makes_no_pool_flap(workers: int, swing: float, period: int) -> None:
    """Up to a tenth above and below what so many workers can just do."""
    run = Course(setup_of())
    at_the_edge = workers * 700.0

    def swinging(sizes: dict[Role, int]) -> Sight:
        up = int(run.now) % period < period // 2
        return sight(sizes, at_the_edge * (1 + (swing if up else -swing)))

    run.run(SETTLING_S, swinging)
    seen = [sizes[PREFILL] for sizes in run.run(600, swinging)]
    changes = sum(before != after for before, after in itertools.pairwise(seen))
    assert changes <= 1


@few
@given(st.integers(1, 90), st.floats(min_value=0, max_value=9_000), st.integers(0, 50))
def test_more_load_never_means_fewer_workers(prompts: int, waiting: float, more_prompts: int) -> None:
    tokens, more = prompts * 100.0, more_prompts * 100.0
    lighter, heavier = Course(setup_of()), Course(setup_of())
    for _ in range(90):
        fewer = lighter.look(sight(lighter.sizes, tokens, waiting, tokens / 100, tokens / 10_000))
        heavy = tokens + more
        most = heavier.look(sight(heavier.sizes, heavy, waiting + more, heavy / 100, heavy / 10_000))
        assert all(most[role] >= fewer[role] for role in Role)


# Each pool by its own need


def test_prefill_grows_with_arriving_prompts_and_decode_stays() -> None:
    run = Course(setup_of())
    run.run(60, constant(tokens=3_400))
    assert run.sizes == {PREFILL: 5, DECODE: 1}  # 3,400 / (1,000 x 0.7) = 4.9


def test_decode_grows_with_sequences_that_come_too_slowly_and_prefill_stays() -> None:
    run = Course(setup_of())
    run.run(60, constant(sequences=100))  # 40 beside each other take 50 ms a token
    assert run.sizes == {PREFILL: 1, DECODE: 3}


def test_decode_grows_when_its_caches_are_full() -> None:
    run = Course(setup_of())
    run.run(60, lambda sizes: sight(sizes, sequences=4, kv_used=1.9))
    assert run.sizes[DECODE] == 3  # 1.9 / 0.8 = 2.4


def test_a_time_between_tokens_that_no_size_reaches_is_said_and_not_chased_to_the_end() -> None:
    run = Course(setup_of(itl_target_s=0.005))
    run.run(60, constant(sequences=5))
    assert run.sizes[DECODE] == 3  # two to a worker add a fifth to its 10 ms
    assert "no size reaches" in run.decided[DECODE].needs[1].because


def test_a_queue_is_to_be_gone_within_what_the_target_leaves_for_it() -> None:
    run = Course(setup_of())
    run.run(4, lambda sizes: sight(sizes, tokens=100, waiting=3_000))
    assert run.sizes[PREFILL] >= 4
    assert run.decided[PREFILL].needs[1].rule == "queue"


def test_it_reacts_within_five_seconds() -> None:
    run = Course(setup_of())
    run.run(60, constant(tokens=300, sequences=5))
    assert run.sizes == {PREFILL: 1, DECODE: 1}
    run.run(5, constant(tokens=3_000, sequences=90))
    assert run.sizes[PREFILL] >= 3
    assert run.sizes[DECODE] >= 2


def test_a_moment_of_more_load_changes_nothing() -> None:
    run = Course(setup_of())
    run.run(60, constant(tokens=500))
    run.look(sight(run.sizes, tokens=500, waiting=1_200))
    assert run.run(30, constant(tokens=500)) == [{PREFILL: 1, DECODE: 1}] * 30


def test_it_shrinks_late_and_one_by_one() -> None:
    run = Course(setup_of(), {PREFILL: 6, DECODE: 1})
    seen = [sizes[PREFILL] for sizes in run.run(200, constant(tokens=500))]
    assert seen[:60] == [6] * 60
    assert seen[-1] == 1
    assert all(before - after <= 1 for before, after in itertools.pairwise(seen))


def test_a_load_that_falls_in_two_steps_is_followed_all_the_way() -> None:
    run = Course(setup_of(), {PREFILL: 6, DECODE: 1})
    run.run(30, constant(tokens=1_800))
    run.run(400, constant(tokens=100))
    assert run.sizes[PREFILL] == 1


@few
@given(st.lists(st.floats(min_value=0, max_value=9_000), max_size=6), st.integers(1, 90))
def test_however_the_load_came_to_be_small_the_pools_become_small(past: list[float], each_s: int) -> None:
    run = Course(setup_of())
    for tokens in past:
        run.run(each_s, constant(tokens, tokens / 30))
    run.run(1_200, constant(tokens=100, sequences=3))
    assert run.sizes == {PREFILL: 1, DECODE: 1}


# Zero


def test_without_demand_both_pools_end_and_the_first_request_that_waits_begins_them_at_once() -> None:
    run = Course(sleeper())
    seen = run.run(120, constant())
    assert seen[98] == {PREFILL: 1, DECODE: 1}
    assert seen[-1] == {PREFILL: 0, DECODE: 0}
    assert run.look(Sight()) == {PREFILL: 0, DECODE: 0}
    assert run.look(Sight(waiting_requests=1, waiting_tokens=50.0, in_flight=1)) == {PREFILL: 1, DECODE: 1}
    assert "begins again" in run.decided[PREFILL].because


def test_a_stream_that_goes_on_keeps_its_pool() -> None:
    run = Course(sleeper())
    assert run.run(300, constant(sequences=1))[-1] == {PREFILL: 1, DECODE: 1}


def test_a_pool_with_a_least_size_never_ends() -> None:
    assert Course(setup_of(pace={"idle_s": 1.0})).run(300, constant())[-1] == {PREFILL: 1, DECODE: 1}


# Orders


def test_a_pin_holds_at_once_and_against_any_load() -> None:
    run = Course(setup_of())
    run.orders = ScalingOrders(1, {DECODE: Bounds(7, 7)})
    assert run.look(sight(run.sizes)) == {PREFILL: 1, DECODE: 7}
    assert run.decided[DECODE].limits[0].name == "bounds"
    run.run(100, constant(sequences=3_000))
    assert run.sizes[DECODE] == 7


def test_a_pause_leaves_sizes_as_they_are_but_for_orders() -> None:
    run = Course(setup_of())
    run.orders = ScalingOrders(1, {}, paused="maintenance")
    run.run(60, constant(tokens=9_000))
    assert run.sizes[PREFILL] == 1
    assert run.decided[PREFILL].because == "paused: maintenance"
    run.orders = ScalingOrders(2, {PREFILL: Bounds(4, 6)}, paused="maintenance")
    assert run.look(sight(run.sizes))[PREFILL] == 4


# Both together


def test_the_budget_takes_from_nobody_what_he_has_and_needs() -> None:
    run = Course(setup_of(budget=6))
    run.run(60, constant(tokens=2_000, sequences=100))
    assert run.sizes == {PREFILL: 3, DECODE: 3}
    run.run(60, constant(tokens=9_000, sequences=100))
    assert run.sizes == {PREFILL: 3, DECODE: 3}
    assert run.decided[PREFILL].limits[-1].name == "budget"


def test_the_ratio_grows_the_smaller_side() -> None:
    run = Course(setup_of(ratio_most=2.0))
    run.run(150, constant(tokens=3_400))
    assert run.sizes == {PREFILL: 5, DECODE: 3}
    assert run.decided[DECODE].limits[0].name == "ratio"


def test_where_the_smaller_side_cannot_grow_the_larger_one_grows_no_further() -> None:
    run = Course(setup_of(decode={"autoscale": {"max_replicas": 2}}, ratio_most=2.0))
    run.run(60, constant(tokens=6_000))
    assert run.sizes == {PREFILL: 4, DECODE: 2}


def test_a_pool_of_fixed_size_stays() -> None:
    run = Course(setup_of(decode={"replicas": 2}), {PREFILL: 1, DECODE: 2})
    run.run(60, constant(tokens=3_400, sequences=500))
    assert run.sizes == {PREFILL: 5, DECODE: 2}


@pytest.mark.parametrize(("budget", "sizes"), [(None, {PREFILL: 5, DECODE: 3}), (6, {PREFILL: 4, DECODE: 2})])
def test_the_worked_example_of_the_documentation(budget: float | None, sizes: dict[Role, int]) -> None:
    run = Course(setup_of(budget=budget))
    run.run(40, lambda there: sight(there, 3_000, 900, 90, 1.9, arrived_requests=6))
    flow, queue = run.decided[PREFILL].needs
    room, pace = run.decided[DECODE].needs
    assert [round(need.workers, 1) for need in (flow, queue, room, pace)] == [4.3, 1.8, 2.4, 2.2]
    assert run.sizes == sizes
