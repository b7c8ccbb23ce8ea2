"""Picks by the state of caches; and those that do not predict, to compare with."""

from __future__ import annotations

import pytest

from cluster.block_hashes import extend_chain
from cluster.engine import Role
from router.decision import Why
from router.worker_loads import Load, WorkerFacts
from tests.router.test_predicted_placement import BLOCK, SEED, demand, first, placement


def test_new_prompts_go_where_the_cache_is_emptier_until_that_costs_more_than_it_saves() -> None:
    made = placement(prefill=2, num_blocks=1_000, disaggregate="always")
    made.index.blocks_stored("p0", extend_chain(SEED, range(10_000_000, 10_000_000 + 800 * BLOCK.tokens), BLOCK.tokens))
    decision = first(made, demand())
    assert (decision.chosen.worker_id, decision.chosen.evict_s) == ("p1", 0.0)
    assert decision.runner_up is not None
    assert decision.runner_up.evict_s == pytest.approx(0.8 * 0.4)  # 4,000 tokens of 0.1 ms, in a cache four fifths full
    made.loads.reserve("other", "p1", Load(5_000, 1, 100), 0.0)
    assert first(made, demand()).chosen.worker_id == "p0"
    made.loads.settle("other")
    made.index.worker_gone("p0")
    made.worker_up(WorkerFacts("p0", Role.PREFILL, 1_000))
    assert {first(made, demand(), seed).chosen.worker_id for seed in range(20)} == {"p0", "p1"}


def test_round_robin_gives_each_worker_its_turn_whatever_it_costs() -> None:
    made = placement(prefill=3, disaggregate="always", pick="round-robin")
    made.loads.reserve("busy", "p1", Load(1e6, 10, 100), 0.0)
    taken = []
    for number in range(6):
        decision = first(made, demand(session="talk"))
        made.take(f"attempt-{number}", demand(session="talk"), decision, 0.0)
        taken.append(decision.chosen.worker_id)
        assert decision.why is Why.TURN
    assert taken[:3] == taken[3:]
    assert set(taken) == {"p0", "p1", "p2"}


def test_random_picks_draw_among_all_whatever_they_cost() -> None:
    made = placement(prefill=3, disaggregate="always", pick="random")
    made.loads.reserve("busy", "p1", Load(1e6, 10, 100), 0.0)
    assert {first(made, demand(), seed).chosen.worker_id for seed in range(20)} == {"p0", "p1", "p2"}
