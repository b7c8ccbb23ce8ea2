"""What streams say of the time between tokens, and what is measured of a router that answers at a known pace."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from cluster.engine_profile import cpu_hardware
from cluster.errors import ConfigError
from cluster.model_config import model_shape
from deploy.cli.status_document import ClusterStatus, cluster_status
from deploy.profiling.lengths import LEAST_LONGEST
from deploy.profiling.measure import Bench, Schedule, together_s
from deploy.profiling.target import Target, _doubling, schedule
from tests.deploy.cli.stub_router import healthy_status


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


def pulled(size: int, seconds: float) -> ClusterStatus:
    answer = healthy_status()
    landed = answer.workers[1].description.counters.transfers[0]
    landed.bytes, landed.seconds = size, seconds
    return cluster_status(answer)


@pytest.mark.parametrize("ranks", [1, 4])
def test_bandwidth_is_that_of_one_rank_though_all_of_them_count_bytes(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Iterator[ClusterStatus] = iter([pulled(1_000, 1.0), pulled(1_000 + ranks * 8_000, 3.0)])
    plan = Schedule((64, 128), (1,), 1, 8, 100, ranks, 1.0)
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        bench = Bench(channel, plan, 1, lambda: next(looks), 0)
        monkeypatch.setattr(bench, "_arrivals", lambda *_: [0.0])
        assert bench._copy(lambda _: None) == 4_000


def found(longest: int) -> Target:
    return Target(model_shape("llama-3.1-8b"), cpu_hardware(1e9), 1, 1, 0, 1_000, longest)


def test_the_least_that_may_be_asked_for_can_be_measured() -> None:
    assert schedule(found(8_192), LEAST_LONGEST, 1, 1, 1.0).lengths == (64, 128)


def test_a_model_that_takes_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model takes 128 tokens: too few"):
        schedule(found(128), LEAST_LONGEST, 1, 1, 1.0)
