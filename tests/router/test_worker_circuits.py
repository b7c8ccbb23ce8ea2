"""Circuits of workers: opened by failures in a row of different requests, longer each time, closed by one success."""

from __future__ import annotations

from router.worker_circuits import CircuitRules, WorkerCircuits

RULES = CircuitRules(after=3, open_s=1.0, most_s=3.0)


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    circuits = WorkerCircuits(RULES)
    assert [circuits.failed("w", request, 0.0) for request in "ab"] == [None, None]
    circuits.worked("w")
    assert [circuits.failed("w", request, 0.0) for request in "cd"] == [None, None]
    assert circuits.failed("other", "e", 0.0) is None
    assert circuits.failed("w", "e", 5.0) == 6.0


def test_one_request_that_fails_again_and_again_counts_once() -> None:
    circuits = WorkerCircuits(RULES)
    assert [circuits.failed("w", "poison", 0.0) for _ in range(10)] == [None] * 10


def test_each_failure_after_its_time_doubles_it_up_to_a_limit_and_those_within_do_not_count() -> None:
    circuits = WorkerCircuits(RULES)
    for request in "ab":
        circuits.failed("w", request, 0.0)
    assert circuits.failed("w", "c", 0.0) == 1.0
    assert circuits.failed("w", "d", 0.5) is None
    assert circuits.failed("w", "d", 1.0) == 3.0
    assert circuits.failed("w", "d", 3.0) == 6.0
    circuits.worked("w")
    assert len(circuits) == 0
    assert circuits.failed("w", "e", 10.0) is None
