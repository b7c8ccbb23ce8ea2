"""From a fault to the next token of the streams that it moved."""

from __future__ import annotations

import pytest

from protos.baton.v1 import admin_pb2 as pb
from tests.chaos.faults import Dealt
from tests.chaos.load import Stream
from tests.chaos.verdict import resumed

WALL = 1_000_000.0  # the wall's time where the monotonic clock begins
FAULT = Dealt("kill", 11.0, "decode-0")


def attempt(
    leg: str, worker_id: str, at_s: float, duration_s: float, outcome: str, first_at_s: float
) -> pb.AttemptReport:
    return pb.AttemptReport(
        leg=leg, worker_id=worker_id, at_s=at_s, duration_s=duration_s, outcome=outcome, first_at_s=first_at_s
    )


PREFILL = attempt("prefill", "prefill-0", 0.0, 0.2, "completed", 0.2)
BROKEN = attempt("decode", "decode-0", 0.2, 0.85, "lost", 0.3)  # from 10.2 to 11.05
WENT_ON = attempt("whole", "decode-1", 1.05, 2.0, "completed", 1.2)  # its first token at 11.2


def moved(attempts: list[pb.AttemptReport], arrivals: list[float]) -> list[float]:
    stream = Stream("one", [1], 5, began=10.0, ended=13.1, arrivals=arrivals, journal_id="one-1")
    told = pb.Explanation(arrived_unix_s=WALL + 10.0, attempts=attempts)
    return [each.seconds for each in resumed([stream], [FAULT], lambda _: told, WALL)]


def test_a_stream_goes_on_with_the_first_token_of_the_attempt_after_the_one_that_broke() -> None:
    assert moved([PREFILL, BROKEN, WENT_ON], [10.2, 10.9, 11.21, 11.3]) == [pytest.approx(0.21)]


def test_a_token_that_was_under_way_from_the_dead_worker_is_not_the_next_one() -> None:
    assert moved([PREFILL, BROKEN, WENT_ON], [10.2, 11.01, 11.21, 11.3]) == [pytest.approx(0.21)]


def test_a_pause_long_after_it_went_on_is_not_the_faults() -> None:
    assert moved([PREFILL, BROKEN, WENT_ON], [10.2, 10.9, 11.21, 12.9]) == [pytest.approx(0.21)]


def test_an_attempt_that_was_lost_as_well_before_its_first_token_does_not_count() -> None:
    lost = attempt("whole", "decode-2", 1.05, 0.5, "lost", 0.0)
    lost.ClearField("first_at_s")
    later = attempt("whole", "decode-1", 1.6, 1.0, "completed", 1.8)
    assert moved([PREFILL, BROKEN, lost, later], [10.2, 10.9, 11.81]) == [pytest.approx(0.81)]


def test_a_stream_that_never_went_on_counts_to_its_end() -> None:
    assert moved([PREFILL, BROKEN], [10.2, 10.9]) == [pytest.approx(2.1)]


@pytest.mark.parametrize(
    "there",
    [
        attempt("decode", "decode-0", 0.2, 2.0, "completed", 0.3),
        attempt("decode", "decode-0", 0.2, 0.3, "lost", 0.3),  # by an earlier fault
        attempt("decode", "decode-1", 0.2, 0.85, "lost", 0.3),
        attempt("prefill", "decode-0", 0.2, 0.85, "lost", 0.3),
    ],
    ids=["unhurt", "hurt before", "elsewhere", "had not begun to decode"],
)
def test_a_stream_that_this_fault_did_not_move_is_not_counted(there: pb.AttemptReport) -> None:
    assert moved([PREFILL, there, WENT_ON], [10.2, 10.9, 11.21]) == []
