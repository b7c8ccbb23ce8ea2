"""What each rule wants, as its inputs go where it could break."""

from __future__ import annotations

import itertools
import math

import pytest

from cluster.config_scaling import AutoscalingConfig
from cluster.scaling.needs import DecodeDemand, decode_needs

RULE = AutoscalingConfig(itl_target_s=0.05)


def pace(step_s: float, sequence_s: float = 0.001, sequences: float = 30.0) -> float:
    need = decode_needs(DecodeDemand(sequences, 0.0, 1.0, step_s, sequence_s), RULE)[1]
    assert need.rule == "pace"
    return need.workers


def test_sequences_may_add_to_a_step_what_is_left_of_the_target() -> None:
    assert pace(step_s=0.010) == pytest.approx(30 / 40)
    assert pace(step_s=0.040) == pytest.approx(3.0)


@pytest.mark.parametrize("sequence_s", [0.0001, 0.001, 0.02])
def test_a_little_more_time_a_step_never_means_many_workers_more_or_fewer(sequence_s: float) -> None:
    steps = [pace(step_s=at / 20_000, sequence_s=sequence_s) for at in range(1, 2_000)]  # to twice the target
    assert all(abs(after - before) <= 0.05 * before for before, after in itertools.pairwise(steps[20:]))


def test_a_step_that_takes_longer_than_the_target_alone_is_not_given_a_worker_for_each_sequence() -> None:
    assert pace(step_s=0.0489) == pytest.approx(pace(step_s=0.0491), rel=0.01)
    assert pace(step_s=0.0491) == pytest.approx(30 / 9.82)


@pytest.mark.parametrize("step_s", [0.0, 0.01, 0.2])
def test_sequences_that_cost_nothing_are_served_by_one_worker_however_many(step_s: float) -> None:
    assert pace(step_s, sequence_s=0.0, sequences=10_000.0) == 0.0
    because = decode_needs(DecodeDemand(50.0, 0.0, 1.0, step_s, 0.0), RULE)[1].because
    assert ("no size reaches" in because) == (step_s > 0.05)


def test_a_step_that_costs_nothing_alone_leaves_all_of_the_target_to_sequences() -> None:
    assert pace(step_s=0.0) == pytest.approx(30 / 50)


@pytest.mark.parametrize(("step_s", "sequence_s"), [(math.nan, 0.001), (0.01, math.nan), (0.01, -0.001)])
def test_a_cost_that_is_no_amount_is_not_known(step_s: float, sequence_s: float) -> None:
    assert math.isnan(pace(step_s, sequence_s))
