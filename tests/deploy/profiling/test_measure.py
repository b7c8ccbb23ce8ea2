"""What streams say of the time between tokens, and what is measured of a router that answers at a known pace."""

from __future__ import annotations

import pytest

from deploy.profiling.measure import together_s
from deploy.profiling.target import _doubling


def stream(first: float, gap: float, tokens: int) -> list[float]:
    return [first + gap * at for at in range(tokens)]


def test_only_the_time_counts_in_which_all_streams_run() -> None:
    streams = [stream(0.0, 0.01, 100), stream(0.5, 0.01, 100)]
    streams[0][:40] = stream(-10.0, 0.0001, 40)  # quick while it was alone
    assert together_s(streams) == pytest.approx(0.01, rel=0.05)


def test_tokens_that_come_several_at_once_are_counted_one_by_one() -> None:
    pairs = [at for each in stream(0.0, 0.02, 50) for at in (each, each)]
    assert together_s([pairs, pairs]) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("second", [stream(5.0, 0.01, 100), stream(0.95, 0.01, 100)], ids=["apart", "hardly together"])
def test_streams_that_were_not_together_say_nothing(second: list[float]) -> None:
    assert together_s([stream(0.0, 0.01, 100), second]) is None


def test_sizes_double_up_to_the_last() -> None:
    assert _doubling(64, 1000) == [64, 128, 256, 512]
