"""How many retries a router makes: a share of its recent requests, and a few whatever happens; each waits longer."""

from __future__ import annotations

from router.retry_budget import FIRST_WAIT_S, MOST_WAIT_S, WINDOW_S, RetryBudget


def taken(budget: RetryBudget, now: float, tries: int = 1_000) -> int:
    return sum(budget.take(1, now) is not None for _ in range(tries))


def test_retries_are_a_share_of_the_requests_and_a_floor() -> None:
    budget = RetryBudget(share=0.2, floor_per_s=1.0, seed=1)
    for _ in range(100):
        budget.came(0.0)
    assert taken(budget, 5.0) == 20 + WINDOW_S
    assert budget.refused == 1_000 - 20 - WINDOW_S


def test_requests_and_retries_of_long_ago_do_not_count() -> None:
    budget = RetryBudget(share=0.5, floor_per_s=0.2, seed=1)
    for _ in range(10):
        budget.came(0.0)
    assert taken(budget, 0.5) == 7
    assert taken(budget, 9.9) == 0
    assert taken(budget, 10.0) == 2


def test_a_router_that_serves_nothing_but_errors_makes_no_more_than_its_share() -> None:
    budget = RetryBudget(share=0.2, floor_per_s=3.0, seed=1)
    retries = 0
    for tick in range(1_000):  # ten requests a second, each of which fails on every worker
        now = tick / 10
        budget.came(now)
        retries += taken(budget, now, tries=6)
    assert retries <= 0.2 * 1_000 + 3.0 * (100 + WINDOW_S)


def test_without_a_share_and_a_floor_there_is_no_retry() -> None:
    budget = RetryBudget(share=0.0, floor_per_s=0.0, seed=1)
    budget.came(0.0)
    assert budget.take(1, 0.0) is None


def test_each_wait_is_about_twice_the_last_up_to_a_limit_and_repeatable() -> None:
    def waits(seed: int) -> list[float]:
        budget = RetryBudget(share=1.0, floor_per_s=100.0, seed=seed)
        return [wait for errors in range(1, 40) if (wait := budget.take(errors, 0.0)) is not None]

    for errors, wait in enumerate(waits(7)):
        middle = min(FIRST_WAIT_S * 2**errors, MOST_WAIT_S)
        assert 0.5 * middle <= wait <= 1.5 * middle
    assert waits(7) == waits(7) != waits(8)
