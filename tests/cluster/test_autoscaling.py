"""Pool sizes: proportional to load, within the bounds, and never moved by what is not known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.autoscaling import decode_load, desired_replicas, prefill_load
from cluster.config import AutoscaleBounds

BOUNDS = AutoscaleBounds(min_replicas=1, max_replicas=10, target_load=0.5, tokens_per_unit=1_000, sequences_per_unit=10)
UNKNOWN = math.nan

loads = st.lists(st.floats(min_value=0, max_value=5) | st.just(UNKNOWN), max_size=12)


def test_prefill_load_counts_queued_tokens_in_units() -> None:
    assert prefill_load(0, BOUNDS) == 0
    assert prefill_load(2_500, BOUNDS) == 2.5


def test_decode_load_is_the_scarcer_of_sequences_and_blocks() -> None:
    assert decode_load(running=5, kv_usage=0.1, bounds=BOUNDS) == 0.5
    assert decode_load(running=1, kv_usage=0.9, bounds=BOUNDS) == 0.9


@pytest.mark.parametrize(
    ("reported", "current", "wanted", "why"),
    [
        ([0.5, 0.5], 2, 2, "on target"),
        ([1.0, 1.0], 2, 4, "twice the target: twice the replicas"),
        ([0.1, 0.1], 2, 1, "0.2 of work at 0.5 each fits one"),
        ([0.0, 0.0], 2, 1, "idle, but never below the minimum"),
        ([9.0, 9.0], 2, 10, "never above the maximum"),
        ([0.51], 1, 2, "just above the target"),
        ([], 3, 3, "nobody reported: hold"),
        ([UNKNOWN, UNKNOWN], 2, 2, "nobody knows: hold"),
        ([math.inf], 2, 2, "infinity is no load"),
        ([0.6, UNKNOWN], 2, 2, "the unknown one may be idle: no more"),
        ([0.4, UNKNOWN], 2, 2, "the unknown one may be busy: no fewer"),
        ([2.0, UNKNOWN], 2, 4, "needed even if the unknown one is idle"),
        ([0.0, 0.0, UNKNOWN], 3, 1, "one is enough even if the unknown one is on target"),
        ([1.0], 3, 3, "two more are starting already"),
        ([], 20, 10, "the maximum was lowered"),
    ],
)
def test_desired_replicas(reported: list[float], current: int, wanted: int, why: str) -> None:
    assert desired_replicas(reported, BOUNDS, current) == wanted, why


@pytest.mark.parametrize("replicas", range(1, 11))
@pytest.mark.parametrize("target", [0.1, 0.3, 0.7, 0.9])
def test_a_pool_exactly_on_target_stays_as_it_is(replicas: int, target: float) -> None:
    bounds = BOUNDS.model_copy(update={"target_load": target})
    assert desired_replicas([target] * replicas, bounds, replicas) == replicas


@given(loads, st.integers(min_value=1, max_value=10))
def test_the_answer_is_within_the_bounds(reported: list[float], current: int) -> None:
    assert BOUNDS.min_replicas <= desired_replicas(reported, BOUNDS, current) <= BOUNDS.max_replicas


@given(loads, st.integers(min_value=1, max_value=10), st.floats(min_value=0, max_value=5))
def test_more_load_never_means_fewer_replicas(reported: list[float], current: int, more: float) -> None:
    heavier = [load + more for load in reported]
    assert desired_replicas(heavier, BOUNDS, current) >= desired_replicas(reported, BOUNDS, current)


@given(loads, st.integers(min_value=1, max_value=10))
def test_a_change_holds_whatever_the_silent_replicas_carry(reported: list[float], current: int) -> None:
    wanted = desired_replicas(reported, BOUNDS, current)
    if wanted > max(current, BOUNDS.min_replicas):
        assert wanted == desired_replicas(_filled(reported, 0.0), BOUNDS, current)
    if wanted < min(current, BOUNDS.max_replicas):
        assert wanted >= desired_replicas(_filled(reported, BOUNDS.target_load), BOUNDS, current)


def _filled(reported: list[float], load: float) -> list[float]:
    return [load if math.isnan(each) else each for each in reported]
