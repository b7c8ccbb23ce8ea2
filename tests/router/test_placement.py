"""Placement by least load, with this router's own work counted from the moment of the decision."""

from __future__ import annotations

import random

import pytest

from cluster.engine import Role
from protos.baton.v1 import worker_pb2
from router.fleet_view import FleetView
from router.placement import place

NOBODY: frozenset[str] = frozenset()


def fleet(*worker_ids: str, role: Role) -> FleetView:
    view = FleetView()
    for worker_id in worker_ids:
        view.add(worker_id, role)
    return view


def choose(view: FleetView, role: Role, avoid: frozenset[str] = NOBODY, seed: int = 0) -> str | None:
    return place(view, role, avoid, random.Random(seed))


def reserve(view: FleetView, worker_id: str, attempt_id: str, tokens: int) -> None:
    worker = view.get(worker_id)
    assert worker is not None
    worker.reserve(attempt_id, tokens)


def report(view: FleetView, worker_id: str, **load: float) -> None:
    worker = view.get(worker_id)
    assert worker is not None
    worker.report(worker_pb2.Load(**load))  # type: ignore[arg-type]


def test_nobody_is_chosen_from_an_empty_pool_or_from_the_other_one() -> None:
    assert choose(FleetView(), Role.PREFILL) is None
    assert choose(fleet("d", role=Role.DECODE), Role.PREFILL) is None


def test_prefill_goes_to_the_shortest_queue_of_prompt_tokens() -> None:
    view = fleet("a", "b", role=Role.PREFILL)
    reserve(view, "a", "1", 4000)
    reserve(view, "b", "2", 100)
    reserve(view, "b", "3", 100)
    assert choose(view, Role.PREFILL) == "b"


def test_a_second_decision_sees_the_first_one_before_any_report() -> None:
    view = fleet("a", "b", role=Role.PREFILL)
    first = choose(view, Role.PREFILL)
    assert first is not None
    reserve(view, first, "1", 500)
    assert choose(view, Role.PREFILL) == ({"a", "b"} - {first}).pop()


def test_decode_goes_where_few_sequences_run() -> None:
    view = fleet("a", "b", role=Role.DECODE)
    report(view, "a", running=10)
    report(view, "b", running=2)
    assert choose(view, Role.DECODE) == "b"


def test_a_decode_worker_whose_cache_is_full_loses_against_a_busier_one() -> None:
    view = fleet("a", "b", role=Role.DECODE)
    report(view, "a", running=2, kv_usage=0.95)
    report(view, "b", running=3, kv_usage=0.1)
    assert choose(view, Role.DECODE) == "b"


def test_the_work_of_other_routers_counts_and_our_own_is_not_counted_twice() -> None:
    view = fleet("a", role=Role.DECODE)
    reserve(view, "a", "1", 0)
    report(view, "a", running=3)
    worker = view.get("a")
    assert worker is not None
    assert worker.running == 3
    worker.settle("1")
    assert worker.running == 2


def test_avoided_and_leaving_workers_get_nothing() -> None:
    view = fleet("a", "b", "c", role=Role.DECODE)
    worker = view.get("a")
    assert worker is not None
    worker.leaving = True
    assert choose(view, Role.DECODE, avoid=frozenset({"b"})) == "c"
    assert choose(view, Role.DECODE, avoid=frozenset({"b", "c"})) is None


def test_ties_are_broken_by_the_seed_and_reach_every_worker() -> None:
    view = fleet("a", "b", "c", role=Role.PREFILL)
    picks = [choose(view, Role.PREFILL, seed=seed) for seed in range(50)]
    assert set(picks) == {"a", "b", "c"}
    assert picks == [choose(view, Role.PREFILL, seed=seed) for seed in range(50)]


@pytest.mark.parametrize("role", list(Role))
def test_an_answered_prompt_no_longer_counts_as_queued(role: Role) -> None:
    view = fleet("a", role=role)
    reserve(view, "a", "1", 700)
    worker = view.get("a")
    assert worker is not None
    assert worker.queued_prefill_tokens == 700
    worker.computed("1")
    assert worker.queued_prefill_tokens == 0
    assert not worker.idle
    worker.settle("1")
    assert worker.idle
    assert worker.queued_prefill_tokens == 0
