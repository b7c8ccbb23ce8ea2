"""What several routers' reports amount to."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cluster.engine import Role
from cluster.scaling.reports import Arrivals, Heard, RouterReport, WorkerSight, see
from tests.cluster.scaling.simulated_load import DECODE, PREFILL

STALE_S = 5.0


def worker(worker_id: str, role: Role = PREFILL, **more: Any) -> WorkerSight:
    facts = {
        "ready": True, "queued_tokens": 0.0, "tokens_per_s": 1_000.0, "sequences": 0.0, "kv_usage": 0.0,
        "step_s": 0.01, "sequence_s": 0.001,
    }  # fmt: skip
    return WorkerSight(worker_id, role, **(facts | more))


def test_of_a_worker_the_fullest_account_counts_and_of_requests_every_routers() -> None:
    one = RouterReport("r1", 2, 200.0, 5, workers=(worker("p1", queued_tokens=300.0), worker("d1", DECODE)))
    two = RouterReport("r2", 1, 50.0, 4, workers=(worker("p1", queued_tokens=500.0), worker("p2", ready=False)))
    sight, _ = see([Heard(one, 0.1), Heard(two, 0.4)], {}, STALE_S)
    assert (sight.waiting_requests, sight.waiting_tokens, sight.in_flight) == (3, 250.0, 9)
    prefill = sight.pools[PREFILL]
    assert (prefill.workers, prefill.ready, prefill.queued_tokens, prefill.tokens_per_s) == (2, 1, 500.0, 1_000.0)
    assert sight.pools[DECODE].workers == 1


def test_arrivals_are_counted_from_report_to_report_and_begin_with_the_first() -> None:
    first = RouterReport("r1", arrived_requests=100, arrived_tokens=9_000.0)
    sight, counters = see([Heard(first, 0.0)], {}, STALE_S)
    assert (sight.arrived_requests, sight.arrived_tokens) == (0, 0.0)
    second = RouterReport("r1", arrived_requests=103, arrived_tokens=9_300.0)
    sight, counters = see([Heard(second, 0.0)], counters, STALE_S)
    assert (sight.arrived_requests, sight.arrived_tokens) == (3, 300.0)
    assert counters == {"r1": Arrivals(103, 9_300.0)}


def test_a_router_that_was_silent_begins_its_count_anew() -> None:
    before = RouterReport("r1", arrived_requests=100, arrived_tokens=9_000.0)
    _, counters = see([Heard(before, 0.0)], {}, STALE_S)
    _, counters = see([Heard(before, STALE_S + 1.0)], counters, STALE_S)
    back = RouterReport("r1", arrived_requests=200, arrived_tokens=19_000.0)
    sight, counters = see([Heard(back, 0.0)], counters, STALE_S)
    assert (sight.arrived_requests, sight.arrived_tokens) == (0, 0.0)
    later = RouterReport("r1", arrived_requests=210, arrived_tokens=20_000.0)
    assert see([Heard(later, 0.0)], counters, STALE_S)[0].arrived_tokens == 1_000.0


def test_a_report_that_is_too_old_says_only_that_its_router_is_silent() -> None:
    old = RouterReport("r1", waiting_requests=7, workers=(worker("p1"),))
    sight, _ = see([Heard(old, 6.0), Heard(RouterReport("r2"), 1.0)], {}, STALE_S)
    assert (sight.waiting_requests, sight.silent, sight.blind) == (0, ("r1",), False)
    assert see([Heard(old, 6.0)], {}, STALE_S)[0].blind
    assert see([], {}, STALE_S)[0].blind


@pytest.mark.parametrize("broken", [math.nan, math.inf, -1.0])
def test_what_is_no_amount_makes_the_sum_unknown(broken: float) -> None:
    report = RouterReport("r1", workers=(worker("p1", queued_tokens=broken), worker("p2", queued_tokens=5.0)))
    assert math.isnan(see([Heard(report, 0.0)], {}, STALE_S)[0].pools[PREFILL].queued_tokens)


def test_a_speed_that_is_not_known_is_taken_from_the_others() -> None:
    report = RouterReport("r1", workers=(worker("p1", tokens_per_s=math.nan), worker("p2", tokens_per_s=500.0)))
    assert see([Heard(report, 0.0)], {}, STALE_S)[0].pools[PREFILL].tokens_per_s == 500.0


def test_a_sequence_that_costs_nothing_is_known_to_do_so_and_a_worker_without_speed_is_not() -> None:
    report = RouterReport("r1", workers=(worker("d1", DECODE, step_s=0.0, sequence_s=0.0, tokens_per_s=0.0),))
    decode = see([Heard(report, 0.0)], {}, STALE_S)[0].pools[DECODE]
    assert (decode.step_s, decode.sequence_s) == (0.0, 0.0)
    assert math.isnan(decode.tokens_per_s)
