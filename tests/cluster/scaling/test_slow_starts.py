"""Workers that take their time to start: what they are going to work off is not ordered again, what comes on top is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.engine import Role
from cluster.scaling.reports import Sight
from tests.cluster.scaling.simulated_load import (
    DECODE,
    PREFILL,
    TOKENS_PER_S,
    Course,
    Prompts,
    constant,
    setup_of,
    sight,
    sleeper,
)

ROOMY = setup_of(prefill={"autoscale": {"max_replicas": 20}})


def prefill_sizes(run: Course, seconds: int, load: Prompts) -> list[int]:
    return [sizes[PREFILL] for sizes in run.run(seconds, load)]


def test_a_backlog_that_ordered_workers_will_work_off_is_not_ordered_again() -> None:
    run, load = Course(ROOMY, start_s=120.0), Prompts(1_500)
    seen = prefill_sizes(run, 600, load)
    assert max(seen) == 3  # 1,500 / (1,000 x 0.7) = 2.1
    assert load.waiting == 0.0


@settings(max_examples=10)
@given(st.floats(min_value=100, max_value=12_000), st.integers(1, 120))
@example(7_407.0, 2)
@example(10_473.0, 1)
@example(5_367.0, 4)
def test_however_slowly_workers_start_a_constant_load_gets_no_more_than_if_they_were_there_at_once(
    tokens: float, start_s: int
) -> None:
    slow, quick = Course(ROOMY, start_s=start_s), Course(ROOMY)
    most = max(prefill_sizes(quick, 60, Prompts(tokens)))
    assert max(prefill_sizes(slow, start_s + 120, Prompts(tokens))) <= most


def test_a_load_that_grows_while_workers_start_is_answered_as_if_none_did() -> None:
    run, load = Course(ROOMY, start_s=120.0), Prompts(1_500)
    prefill_sizes(run, 40, load)
    load.tokens = 6_000
    seen = prefill_sizes(run, 10, load)
    assert seen[4] >= 7
    assert seen[9] >= 9  # 6,000 / (1,000 x 0.7) = 8.6


def test_prompts_that_come_all_at_once_while_workers_start_are_ordered_for() -> None:
    run, load = Course(ROOMY, start_s=120.0), Prompts(1_500)
    before = prefill_sizes(run, 60, load)[-1]
    load.waiting += 200_000
    assert prefill_sizes(run, 10, load)[-1] >= before + 8
    assert "are left to workers that start" in run.decided[PREFILL].needs[1].because


def test_a_backlog_that_the_workers_do_not_work_off_once_they_are_there_is_ordered_after_all() -> None:
    run, load = Course(ROOMY, start_s=60.0), Prompts(1_500)
    assert prefill_sizes(run, 70, load)[-1] == 3

    left = load.waiting

    def no_less(there: dict[Role, int]) -> Sight:
        return sight(there, 1_500, left)

    seen = [sizes[PREFILL] for sizes in run.run(60, no_less)]
    assert seen[0] == 3
    assert seen[-1] > 3


def test_workers_that_have_not_come_by_their_deadline_are_not_reckoned_on() -> None:
    run, load = Course(replace(ROOMY, start_deadline_s=100.0), start_s=10_000.0), Prompts(1_500)
    assert prefill_sizes(run, 90, load)[-1] == 3
    assert prefill_sizes(run, 60, load)[-1] > 3


def test_a_worker_that_is_lost_and_comes_again_costs_no_more_workers() -> None:
    run, load = Course(ROOMY, {PREFILL: 3, DECODE: 1}), Prompts(2_050)
    prefill_sizes(run, 30, load)

    def one_lost(there: dict[Role, int]) -> Sight:
        return load({**there, PREFILL: 2})

    run.run(120, one_lost)
    assert max(prefill_sizes(run, 120, load)) == 3
    assert load.waiting < TOKENS_PER_S


def test_a_pool_at_zero_begins_with_what_the_load_needs_and_not_with_what_waits_meanwhile() -> None:
    run, load = Course(sleeper(), {PREFILL: 0, DECODE: 1}, start_s=90.0), Prompts(500)
    assert max(prefill_sizes(run, 400, load)) == 1
    assert load.waiting == 0.0
    assert run.run(5, constant(tokens=500, sequences=1))[-1][PREFILL] == 1
