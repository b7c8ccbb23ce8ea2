"""The fit of a cost: it finds the truth through noise, shrugs off outliers, follows changes, and is never absurd."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.online_fit import OnlineFit

TRUTH = (0.02, 0.1)


def fit(half_life_s: float = 60.0) -> OnlineFit:
    return OnlineFit([0.01, 0.5], [0.03, 1.5], half_life_s)


def seconds(features: tuple[float, float], truth: tuple[float, float] = TRUTH) -> float:
    return truth[0] * features[0] + truth[1] * features[1]


def worst_error(learnt: OnlineFit, truth: tuple[float, float] = TRUTH) -> float:
    return max(abs(learnt.predict((1, x)) / seconds((1, x), truth) - 1) for x in (0.1, 1, 5, 20))


def test_it_finds_the_truth_through_noise() -> None:
    draw, learnt = random.Random(1), fit()
    for i in range(300):
        features = (1.0, draw.uniform(0, 20))
        learnt.observe(features, seconds(features) * draw.uniform(0.8, 1.2), i * 0.1)
    assert worst_error(learnt) < 0.12


def test_a_few_measurements_are_enough_to_leave_a_wrong_start() -> None:
    learnt = fit()
    assert worst_error(learnt) > 3
    for i, x in enumerate([1.0, 4.0, 2.0, 8.0, 0.5, 3.0, 10.0, 1.0]):
        learnt.observe((1.0, x), seconds((1.0, x)), i)
    assert worst_error(learnt) < 0.25


def test_one_measurement_in_ten_that_is_twenty_times_too_long_does_not_spoil_it() -> None:
    draw, learnt = random.Random(2), fit()
    for i in range(600):
        features = (1.0, draw.uniform(0, 20))
        learnt.observe(features, seconds(features) * (20 if i % 10 == 9 else draw.uniform(0.95, 1.05)), i * 0.1)
    assert worst_error(learnt) < 0.2


def test_a_worker_that_becomes_three_times_slower_is_followed() -> None:
    draw, learnt, slower = random.Random(3), fit(), (0.06, 0.3)
    for i in range(1_000):
        features = (1.0, draw.uniform(0, 20))
        truth = TRUTH if i < 500 else slower
        learnt.observe(features, seconds(features, truth) * draw.uniform(0.95, 1.05), i * 0.1)
    assert worst_error(learnt, slower) < 0.15


def test_after_a_long_silence_few_measurements_outweigh_many_old_ones() -> None:
    def learnt_after(silence_s: float) -> float:
        learnt, slower = fit(), (0.04, 0.2)
        for i in range(300):
            learnt.observe((1.0, i % 7), seconds((1.0, i % 7)), i * 0.01)
        for i in range(8):
            learnt.observe((1.0, i % 7), seconds((1.0, i % 7), slower), silence_s + i)
        return worst_error(learnt, slower)

    assert learnt_after(silence_s=3_600.0) < learnt_after(silence_s=3.0)


def test_what_never_varies_is_not_mistaken_for_knowledge_of_its_parts() -> None:
    learnt = fit()
    for i in range(20_000):
        learnt.observe((1.0, 5.0), seconds((1.0, 5.0)), i)
    assert learnt.predict((1.0, 5.0)) == pytest.approx(seconds((1.0, 5.0)), rel=0.02)
    for i, x in enumerate([1.0, 4.0, 2.0, 8.0, 0.5, 3.0, 10.0, 1.0] * 4):
        learnt.observe((1.0, x), seconds((1.0, x)), 20_000 + i)
    assert worst_error(learnt) < 0.2


def step_fit() -> OnlineFit:
    """Of a decode step as it starts by default: once, each sequence running, each 1,000 tokens in the KV cache."""
    return OnlineFit([0.01, 0.0002, 0.0], [0.03, 0.0006, 0.0001], 60.0)


def ratios_after_steps(truth: tuple[float, float, float], context: float, noise: float, seed: int) -> list[float]:
    """Predicted to true, for each number of sequences, after 1,500 steps of requests of nearly the same length."""
    draw, learnt = random.Random(seed), step_fit()

    def true_s(features: tuple[float, float, float]) -> float:
        return sum(each * of_it for each, of_it in zip(truth, features, strict=True))

    for i in range(1_500):
        running = draw.randint(0, 40)
        features = (1.0, float(running), running * context * draw.uniform(0.96, 1.04) / 1e3)
        learnt.observe(features, true_s(features) * draw.uniform(1 - noise, 1 + noise), i * 0.05)
    typical = [(1.0, float(running), running * context / 1e3) for running in range(41)]
    return [learnt.predict(features) / true_s(features) for features in typical]


@settings(max_examples=40)
@given(
    st.tuples(
        st.floats(0.002, 0.05),
        st.one_of(st.just(0.0), st.floats(1e-6, 1e-3)),
        st.one_of(st.just(0.0), st.floats(1e-6, 1e-3)),
    ),
    st.floats(100, 32_000),
    st.floats(0, 0.3),
    st.integers(0, 1_000),
)
@example(truth=(0.005, 0.0, 0.0), context=16_000.0, noise=0.2, seed=1)
@example(truth=(0.005, 0.00001, 0.0), context=300.0, noise=0.05, seed=0)
def test_features_that_rise_together_do_not_drive_predictions_away_from_the_truth(
    truth: tuple[float, float, float], context: float, noise: float, seed: int
) -> None:
    ratios = ratios_after_steps(truth, context, noise, seed)
    assert 0.8 < min(ratios) <= max(ratios) < 1.25


@pytest.mark.parametrize("truth", [(0.005, 0.0, 0.0), (0.0, 0.00001, 0.0), (0.05, 0.00001, 0.0)])
def test_what_is_always_the_same_stays_right_however_long_it_is_measured(truth: tuple[float, float, float]) -> None:
    draw, learnt, features = random.Random(0), step_fit(), (1.0, 185.0, 3_675.0)
    took = sum(each * of_it for each, of_it in zip(truth, features, strict=True))
    for i in range(5_000):
        learnt.observe(features, took * draw.uniform(0.8, 1.2), 5.0 * i)
        assert i < 50 or learnt.predict(features) == pytest.approx(took, rel=0.25)


def test_evidence_grows_with_measurements_and_halves_with_time() -> None:
    learnt = fit(half_life_s=60.0)
    assert learnt.evidence(5.0) == 0.0
    for i in range(10):
        learnt.observe((1.0, i), seconds((1.0, i)), i * 1e-3)
    assert learnt.evidence(0.01) == pytest.approx(10, rel=0.05)
    assert learnt.evidence(120.01) == pytest.approx(2.5, rel=0.05)
    for i in range(10_000):
        learnt.observe((1.0, i % 7), seconds((1.0, i % 7)), i * 1e-3)
    assert learnt.evidence(10.0) < 250, "of very many, the oldest are forgotten"


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, 1e9])
def test_an_absurd_duration_changes_nothing_and_is_counted(wrong: float) -> None:
    learnt = fit()
    learnt.observe((1.0, 2.0), wrong, 0.0)
    learnt.observe((1.0, math.nan), 1.0, 0.0)
    assert learnt.coefficients == [0.01, 0.5]
    assert learnt.ignored == 2


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(-10, 1e6),
        ),
        max_size=60,
    )
)
def test_predictions_are_finite_and_not_negative_whatever_is_measured(
    measured: list[tuple[float, float, float]],
) -> None:
    learnt = fit()
    for x, took, now in measured:
        learnt.observe((1.0, x), took, now)
        assert 0 <= learnt.coefficients[0] <= 0.01 + 100 * 0.03
        assert 0 <= learnt.coefficients[1] <= 0.5 + 100 * 1.5
        assert 0 <= learnt.predict((1.0, x)) < math.inf
