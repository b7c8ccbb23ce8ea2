"""Prompts count by what of them has to be computed, as far as earlier ones tell."""

from __future__ import annotations

import pytest

from router.arrivals import Arrivals


def test_prompts_count_whole_until_something_of_one_was_cached() -> None:
    arrivals = Arrivals()
    arrivals.came(100)
    arrivals.placed(100, 0)
    arrivals.came(50)
    assert (arrivals.requests, arrivals.tokens) == (2, 150.0)


def test_where_most_of_prompts_is_cached_the_next_one_counts_for_the_rest() -> None:
    arrivals = Arrivals()
    for _ in range(200):
        arrivals.placed(100, 90)
    arrivals.came(1_000)
    assert arrivals.tokens == pytest.approx(100.0, rel=0.01)
