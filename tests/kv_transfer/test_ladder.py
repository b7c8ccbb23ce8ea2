"""Which transports are tried, in which order, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config_transfer import KvTransferConfig, RungConfig
from kv_transfer.circuit import Circuits
from kv_transfer.ladder import LadderRules, choose_rungs

MIB = 1 << 20
BOTH = ("nixl", "grpc")


def rules(**keys: object) -> LadderRules:
    return LadderRules.of(KvTransferConfig.model_validate(keys))


@pytest.mark.parametrize(
    ("keys", "theirs", "order"),
    [
        ({}, {"nixl", "grpc"}, ["nixl", "grpc"]),
        ({"prefer": "grpc"}, {"nixl", "grpc"}, ["grpc", "nixl"]),
        ({}, {"grpc"}, ["grpc"]),
        ({"prefer": "grpc"}, {"nixl"}, ["nixl"]),
        ({"forbid": ["grpc"]}, {"nixl", "grpc"}, ["nixl"]),
        ({"prefer": "grpc", "forbid": ["nixl"]}, {"nixl", "grpc"}, ["grpc"]),
        ({"forbid": ["grpc"]}, {"grpc"}, []),
        ({}, {"carrier pigeon"}, []),
    ],
)
def test_the_order_follows_offers_and_configuration(
    keys: dict[str, object], theirs: set[str], order: list[str]
) -> None:
    assert list(rules(**keys).allowed(BOTH, theirs)) == order


def test_what_failed_of_late_is_skipped_and_when_all_did_nothing_is_tried() -> None:
    ladder = rules()
    circuits = Circuits(ladder.circuits)
    circuits.failed("peer", "nixl", 0.0)
    assert choose_rungs(BOTH, circuits, "peer") == ("grpc",)
    assert choose_rungs(BOTH, circuits, "another peer") == BOTH
    circuits.failed("peer", "grpc", 0.0)
    assert choose_rungs(BOTH, circuits, "peer") == ()


@pytest.mark.parametrize(
    ("mib", "seconds"), [(0, 2.0), (64, 2.0), (256, 2.0), (512, 4.0), (1024, 8.0), (4096, 20.0), (100_000, 20.0)]
)
def test_a_rung_has_the_time_that_its_bytes_may_take(mib: int, seconds: float) -> None:
    assert rules(nixl={"mib_per_s": 512.0}).deadline_s("nixl", mib * MIB) == seconds


@given(size=st.integers(0, 1 << 50), mib_per_s=st.floats(0.1, 1e6), factor=st.floats(1.0, 100.0))
def test_the_time_of_a_rung_stays_between_floor_and_ceiling(size: int, mib_per_s: float, factor: float) -> None:
    rung = RungConfig(mib_per_s=mib_per_s, factor=factor, floor_s=1.0, ceiling_s=7.0)
    ladder = LadderRules.of(KvTransferConfig(grpc=rung))
    assert 1.0 <= ladder.deadline_s("grpc", size) <= 7.0
    assert ladder.deadline_s("grpc", size) <= ladder.deadline_s("grpc", size + MIB)


@given(size=st.integers(0, 1 << 34), factor=st.floats(1.0, 100.0))
def test_as_many_reads_as_may_run_at_once_keep_their_deadlines_at_the_expected_speed(size: int, factor: float) -> None:
    rung = RungConfig(mib_per_s=512.0, factor=factor, floor_s=1e-9, ceiling_s=1e9)
    ladder = LadderRules.of(KvTransferConfig(nixl=rung))
    at_once = ladder.reads_at_once("nixl")
    assert at_once >= 1
    assert at_once * size / (512 * MIB) <= ladder.deadline_s("nixl", size) * (1 + 1e-9)
