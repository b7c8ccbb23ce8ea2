"""What is not known moves nothing: silence, a pause, and inputs that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.engine import Role
from cluster.scaling.frame import ScalingOrders
from cluster.scaling.reports import Sight
from tests.cluster.scaling.simulated_load import DECODE, PREFILL, Course, constant, setup_of, sight, sleeper

Load = Callable[[dict[Role, int]], Sight]


def blind(_: dict[Role, int]) -> Sight:
    return Sight(blind=True)


def broken(sizes: dict[Role, int]) -> Sight:
    return sight(sizes, waiting=math.nan, sequences=4, kv_used=math.nan)


@pytest.mark.parametrize("told", [Sight(blind=True), Sight(blind=True, silent=("router-1",))])
def test_without_a_router_that_reports_nothing_changes_and_the_reason_says_so(told: Sight) -> None:
    run = Course(sleeper(), {PREFILL: 3, DECODE: 2})
    assert run.run(400, lambda _: told)[-1] == {PREFILL: 3, DECODE: 2}
    assert "nothing is known" in run.decided[PREFILL].because


@pytest.mark.parametrize("amount", [math.nan, math.inf])
def test_an_input_that_is_no_number_holds_its_pool_and_only_that(amount: float) -> None:
    run = Course(setup_of(), {PREFILL: 3, DECODE: 3})
    run.run(200, lambda sizes: sight(sizes, tokens=100, waiting=amount))
    assert run.sizes == {PREFILL: 3, DECODE: 1}
    assert "not known: tokens queued at workers" in run.decided[PREFILL].because


@pytest.mark.parametrize("unseen", ["blind", "paused", "not known"])
def test_time_in_which_nothing_was_seen_counts_neither_as_low_load_nor_as_high(unseen: str) -> None:
    run = Course(setup_of(), {PREFILL: 4, DECODE: 4})
    low, high = constant(tokens=100, sequences=4), constant(tokens=4_000, sequences=190)
    for before in (low, high):
        run.run(120, constant(tokens=2_500, sequences=130))  # four are needed of each
        sizes = run.sizes
        run.look(before(sizes))
        if unseen == "paused":
            run.orders = ScalingOrders(1, {}, paused="audit")
        run.run(600, {"blind": blind, "paused": before, "not known": broken}[unseen])
        run.orders = ScalingOrders()
        assert run.look(before(sizes)) == sizes
        assert "since 0 s" in run.decided[DECODE].because


def test_a_pool_does_not_end_for_a_time_in_which_nobody_could_have_told_of_demand() -> None:
    run = Course(sleeper())
    run.run(5, constant(sequences=1))
    run.run(600, blind)
    assert run.run(90, constant())[-1] == {PREFILL: 1, DECODE: 1}
    assert run.run(20, constant())[-1] == {PREFILL: 0, DECODE: 0}


def test_a_silent_router_may_have_more_so_nothing_shrinks() -> None:
    run = Course(setup_of(), {PREFILL: 3, DECODE: 3})
    run.run(200, lambda sizes: sight(sizes, tokens=100, silent=("router-2",)))
    assert run.sizes == {PREFILL: 3, DECODE: 3}
    assert "router-2 may have more" in run.decided[DECODE].because
    run.run(30, lambda sizes: sight(sizes, tokens=4_000, silent=("router-2",)))
    assert run.sizes[PREFILL] > 3


def test_a_pool_whose_sequences_cost_nothing_grows_when_its_caches_are_full_and_shrinks_again() -> None:
    run = Course(setup_of())

    def full(caches: float) -> Load:
        def load(sizes: dict[Role, int]) -> Sight:
            seen = sight(sizes, sequences=50, kv_used=caches)
            free = replace(seen.pools[DECODE], sequence_s=0.0)
            return replace(seen, pools={**seen.pools, DECODE: free})

        return load

    run.run(60, full(caches=1.9))
    assert run.sizes[DECODE] == 3
    run.run(300, full(caches=0.1))
    assert run.sizes[DECODE] == 1


def test_a_rule_that_is_not_known_holds_its_pool_against_no_rule_that_asks_for_more() -> None:
    run = Course(setup_of(), {PREFILL: 2, DECODE: 2})
    run.run(60, lambda sizes: sight(sizes, tokens=3_400, waiting=math.nan, sequences=100, kv_used=math.nan))
    assert run.sizes == {PREFILL: 5, DECODE: 3}
    run.run(300, lambda sizes: sight(sizes, tokens=100, waiting=math.nan, sequences=2, kv_used=math.nan))
    assert run.sizes == {PREFILL: 5, DECODE: 3}
    assert "not known: caches in use" in run.decided[DECODE].because
