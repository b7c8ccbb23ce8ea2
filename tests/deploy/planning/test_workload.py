"""Lengths and traces as workloads."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from deploy.planning.trace import Recorded, busiest_rate, hit_ceiling, read_trace, recorded_workload
from deploy.planning.workload import likely_values, resident, spread_lengths


@given(st.floats(10, 50_000), st.floats(1.0, 3.8))
def test_lengths_have_the_mean_and_about_the_percentile(mean: float, spread: float) -> None:
    lengths = spread_lengths(mean, spread * mean)
    assert fmean(lengths) == pytest.approx(mean, rel=0.02)
    at_95 = sorted(lengths)[int(0.95 * len(lengths))]
    assert at_95 == pytest.approx(spread * mean, rel=0.25)


@given(st.floats(1, 100), st.floats(1.0, 3.8))
def test_short_lengths_have_the_mean_too_and_none_is_below_one_token(mean: float, spread: float) -> None:
    lengths = spread_lengths(mean, spread * mean)
    assert fmean(lengths) == pytest.approx(mean)
    assert min(lengths) >= 1.0


def test_outputs_of_one_token_are_all_of_one_token() -> None:
    assert set(spread_lengths(1.0, 2.0)) == {1.0}


@pytest.mark.parametrize(("mean", "p95"), [(100, 99), (100, 500)])
def test_a_percentile_that_no_lengths_have_is_refused(mean: float, p95: float) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        spread_lengths(mean, p95)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=500))
def test_few_values_stand_for_many_with_the_same_range_and_order(values: list[float]) -> None:
    likely = likely_values(values)
    assert list(likely) == sorted(likely)
    assert min(values) * (1 - 1e-9) <= likely[0] <= likely[-1] <= max(values) * (1 + 1e-9)


def test_a_sequence_is_met_half_way_and_long_outputs_more_often() -> None:
    assert resident([(1_000, 200)]) == pytest.approx((1_100, 200 / 12**0.5))
    mean, _ = resident([(1_000, 100), (1_000, 300)])
    assert mean == pytest.approx((100 * 1_050 + 300 * 1_150) / 400)


def line(at_ms: float, prompt: int, output: int, *blocks: int) -> dict[str, Any]:
    return {"timestamp": at_ms, "input_length": prompt, "output_length": output, "hash_ids": list(blocks)}


def written(tmp_path: Path, lines: list[dict[str, Any]]) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in lines) + "\n")
    return file


def test_a_trace_is_planned_for_by_its_busiest_minute(tmp_path: Path) -> None:
    lines = [line(at * 1_000, 100, 10) for at in range(0, 180, 6)]  # one in six seconds
    lines += [line(60_000 + at * 1_000, 100, 10) for at in range(60)]  # and in the second minute one a second more
    workload = recorded_workload(read_trace(written(tmp_path, lines)), 1_000, None, None)
    assert workload.rate == pytest.approx(70 / 60)
    assert workload.assumed[0].startswith("rate 1.17/s: the busiest minute")


def test_what_is_said_wins_over_the_trace(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, [line(0, 100, 10), line(1_000, 300, 30)]))
    workload = recorded_workload(requests, 1_000, 5.0, 0.25)
    assert (workload.rate, workload.hit_share, workload.assumed) == (5.0, 0.25, ())
    assert (workload.mean_prompt, workload.mean_output, workload.longest) == (200, 20, 330)


def test_requests_that_the_model_cannot_take_are_left_out_and_told(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, [line(0, 100, 10), line(1_000, 3_000, 30), line(2_000, 100, 10)]))
    workload = recorded_workload(requests, 1_000, 1.0, 0.0)
    assert workload.assumed == ("1 of 3 requests are left out: above 1,000 tokens",)
    with pytest.raises(ConfigError, match="no request of at most 50 tokens"):
        recorded_workload(requests, 50, 1.0, 0.0)


def test_hits_are_blocks_that_somebody_had_before() -> None:
    requests = [Recorded(2.0, 9, 1, (1, 2, 4)), Recorded(1.0, 9, 1, (1, 2, 3)), Recorded(3.0, 9, 1, (5, 6))]
    assert hit_ceiling(requests) == 2 / 8
    assert hit_ceiling([Recorded(0.0, 9, 1, ())]) == 0.0


def test_a_moment_has_no_rate() -> None:
    with pytest.raises(ConfigError, match="say the rate yourself"):
        busiest_rate([Recorded(5.0, 9, 1, ()), Recorded(5.0, 9, 1, ())])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}\n{', "trace.jsonl:2: not JSON"),
        ('{"timestamp": 0, "output_length": 1}', "trace.jsonl:1: input_length: Field required"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 1}', "trace.jsonl:1: input_length: Input should be"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 1}', "trace.jsonl:1: timestamp: Input should be"),
        ("\n\n", "holds no request"),
    ],
)
def test_a_trace_that_is_none_is_refused_by_its_line(text: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_trace(file)
    assert line in str(refused.value)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")
