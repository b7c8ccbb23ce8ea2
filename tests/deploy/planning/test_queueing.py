"""Waiting lines: known closed forms, and a line of real customers where there is none."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.planning.queueing import erlang_c, occupancy, percentile, waiting


def test_one_worker_is_busy_for_its_share_of_the_time() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)


def test_erlang_c_of_two_workers_is_as_in_the_books() -> None:
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)  # of 2 workers half busy, a third of the customers wait


def test_exponential_services_wait_as_in_m_m_1() -> None:
    # Squared variation 1: values of two kinds, as likely, 0 and twice the mean.
    line = waiting(1, 0.8, [1e-9, 2.0])
    assert line is not None
    assert line.rate == pytest.approx(0.2, rel=1e-6)
    assert line.longer_than(5.0) == pytest.approx(math.exp(-1.0), rel=1e-6)


def test_constant_services_wait_half_as_long() -> None:
    spread, constant = waiting(3, 2.4, [1e-9, 2.0]), waiting(3, 2.4, [1.0])
    assert spread is not None
    assert constant is not None
    assert constant.rate == pytest.approx(2 * spread.rate, rel=1e-6)


@pytest.mark.parametrize("rate", [2.0, 2.5])
def test_a_line_that_never_ends_is_no_line(rate: float) -> None:
    assert waiting(2, rate, [1.0]) is None


def simulated_waits(workers: int, rate: float, services: list[float], customers: int) -> list[float]:
    draw, free, now, waits = random.Random(7), [0.0] * workers, 0.0, []
    for _ in range(customers):
        now += draw.expovariate(rate)
        start = max(now, heapq.heappop(free))
        waits.append(start - now)
        heapq.heappush(free, start + draw.choice(services))
    return waits


@pytest.mark.parametrize(("workers", "load"), [(1, 0.7), (4, 0.8), (16, 0.9)])
def test_the_approximation_is_near_a_line_of_real_customers(workers: int, load: float) -> None:
    services = [0.2, 0.5, 0.8, 1.0, 2.5]
    line = waiting(workers, load * workers, services)
    assert line is not None
    waits = simulated_waits(workers, load * workers, services, 60_000)
    assert sum(wait > 0 for wait in waits) / len(waits) == pytest.approx(line.chance, rel=0.15)
    assert sum(waits) / len(waits) == pytest.approx(line.chance / line.rate, rel=0.15)
    p95 = percentile(lambda t: line.chance * line.longer_than(t), 0.95)
    assert sorted(waits)[int(0.95 * len(waits))] == pytest.approx(p95, rel=0.2)


def test_sequences_in_an_engine_of_constant_speed_are_geometric() -> None:
    # Steps as long as there are sequences: a shared server, half used, has n customers with chance 0.5^(n+1).
    found = occupancy(0.5, 1.0, [float(n) for n in range(1, 60)])
    assert found is not None
    assert found.chances[:4] == pytest.approx((0.5, 0.25, 0.125, 0.0625))
    assert found.mean == pytest.approx(1.0)
    assert found.quantile(0.5) == 0
    assert found.quantile(0.875) == 2


def test_sequences_that_do_not_slow_each_other_are_poisson() -> None:
    found = occupancy(3.0, 1.0, [1.0] * 80)
    assert found is not None
    assert found.chances[:3] == pytest.approx([math.exp(-3.0) * 3.0**n / math.factorial(n) for n in range(3)])


def test_an_engine_without_enough_places_makes_sequences_wait() -> None:
    found = occupancy(3.0, 1.0, [1.0] * 4)
    assert found is not None
    assert found.wait_chance == pytest.approx(erlang_c(4, 3.0))
    assert occupancy(4.0, 1.0, [1.0] * 4) is None


def test_requests_of_one_token_never_decode() -> None:
    found = occupancy(3.0, 0.0, [1.0] * 4)
    assert found is not None
    assert (found.mean, found.wait_chance) == (0.0, 0.0)


@given(st.integers(1, 50), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_more_load_never_waits_less(workers: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert erlang_c(workers, low * workers) <= erlang_c(workers, high * workers) + 1e-12


@given(st.floats(0.001, 50.0), st.floats(0.5, 0.99))
def test_a_percentile_is_where_its_share_is_reached(mean: float, share: float) -> None:
    assert percentile(lambda t: math.exp(-t / mean), share) == pytest.approx(-mean * math.log(1 - share), rel=1e-6)
