"""Where an amount is going: a constant stays, a ramp is met ahead of time, a jump is no ramp without end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config_scaling import ForecastConfig
from cluster.scaling.forecast import Trend

CONFIG = ForecastConfig()


def after(*values: float) -> Trend:
    trend = Trend()
    for at, value in enumerate(values):
        trend = trend.measured(value, float(at), CONFIG)
    return trend


@given(st.floats(min_value=0, max_value=1e6))
def test_a_constant_is_expected_to_stay(value: float) -> None:
    trend = after(*[value] * 50)
    assert trend.ahead(CONFIG.horizon_s, value) == pytest.approx(value)


def test_a_ramp_is_met_ahead_of_time() -> None:
    trend = after(*[100.0 + 10 * at for at in range(60)])
    assert trend.ahead(CONFIG.horizon_s, 690.0) == pytest.approx(690 + 10 * CONFIG.horizon_s, rel=0.1)


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=40))
def test_a_forecast_is_bounded_by_what_was_seen(values: list[float]) -> None:
    trend = after(*values)
    assert trend.level >= 0
    assert trend.level <= trend.ahead(CONFIG.horizon_s, values[-1]) <= 1.5 * max(trend.level, values[-1]) + 1e-6


def test_a_falling_amount_is_not_expected_to_be_lower_than_it_is() -> None:
    trend = after(*[1_000.0 - 10 * at for at in range(60)])
    assert trend.ahead(CONFIG.horizon_s, 410.0) == trend.level


def test_a_second_measurement_at_the_same_time_changes_nothing() -> None:
    trend = after(1.0, 2.0)
    assert trend.measured(9.0, 1.0, CONFIG) is trend
