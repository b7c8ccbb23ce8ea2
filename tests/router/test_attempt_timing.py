"""What attempts took, as the latency model hears it: apart from what they waited for."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.config_placement import PlacementConfig
from cluster.engine import Leg, PromptOrigin, Role
from router.attempt_timing import AttemptTiming
from router.predicted_placement import BlockShape, Placement
from router.worker_loads import Load, WorkerFacts

WORKER = "p"
STEP_S, TOKEN_S = 0.03, 1e-4


class Bench:
    """One prefill worker that takes prompts one after the other; the clock moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.placement = Placement(PlacementConfig(), BlockShape(32, 1))
        self.placement.worker_up(WorkerFacts(WORKER, Role.PREFILL, 1_000))
        self.timing = AttemptTiming(self.placement)

    def submit(self, attempt_id: str, prompt: int, cached: int) -> None:
        self.timing.submitted(attempt_id, Leg.PREFILL, WORKER, "", prompt, cached, self.now)
        self.placement.loads.reserve(attempt_id, WORKER, Load(prompt - cached, 1, 0, cached), self.now)

    def answer(self, attempt_id: str, prompt: int, cached: int) -> None:
        self.placement.loads.computed(attempt_id, self.now)
        self.timing.output(attempt_id, 1, PromptOrigin(prompt, cached, 0), self.now)
        self.timing.settled(attempt_id, self.now)
        self.placement.loads.settle(attempt_id)

    def prefill_s(self, tokens: int) -> float:
        rows, latency = np.array([0]), self.placement.latency
        return float((latency.asking_s(rows) + latency.compute_s(rows, np.array([tokens]), tokens))[0])


def test_prompts_of_a_worker_that_is_never_idle_teach_what_each_takes_by_itself() -> None:
    bench = Bench()
    bench.submit("0", 100 + 320, 320)
    for number in range(60):
        tokens, after = 100 * (number % 6 + 1), 100 * ((number + 1) % 6 + 1)
        took_s = STEP_S + TOKEN_S * tokens
        bench.now += 0.4 * took_s
        bench.submit(f"{number + 1}", after + 320, 320)
        bench.now += 0.6 * took_s
        bench.answer(f"{number}", tokens + 320, 320)
    for tokens in (100, 300, 600):
        assert bench.prefill_s(tokens) == pytest.approx(STEP_S + TOKEN_S * tokens, rel=0.1)


def test_the_worker_knows_better_than_the_router_what_was_cached() -> None:
    bench = Bench()
    for number in range(20):
        bench.submit(f"{number}", 1_000, 900)
        bench.now += STEP_S + TOKEN_S * 1_000
        bench.answer(f"{number}", 1_000, 0)
    assert bench.prefill_s(1_000) == pytest.approx(STEP_S + TOKEN_S * 1_000, rel=0.1)


def test_attempts_that_are_not_known_are_left_out() -> None:
    bench = Bench()
    before = bench.prefill_s(500)
    bench.answer("nobody", 100, 0)
    bench.timing.submitted("a", Leg.PREFILL, "gone", "", 100, 0, bench.now)
    bench.answer("a", 100, 0)
    assert bench.prefill_s(500) == before
    assert len(bench.timing) == 0
