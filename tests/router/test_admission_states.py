"""Any order of arrivals, ends, cancels and time: every request ends exactly once, and no bound is ever passed."""

from __future__ import annotations

import math
import time
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.config_admission import AdmissionConfig
from cluster.quota import Denied, Granted
from router.admission import Admission
from router.admission_events import AdmissionAction, Admit, Arrival, GiveBack, Queue, Refuse

CONFIG = AdmissionConfig.model_validate(
    {
        "queue": {"max_requests": 12, "max_tokens": 6_000, "most_wait_s": 20.0, "aging_s": 4.0, "class_reserve": 0.2},
        "reorder": {"window": 3, "most_overtakes": 2},
        "running_tokens": 2_000,
        "quantum_tokens": 200,
        "tenants": {"heavy": {"weight": 5.0}, "light": {"weight": 0.2}},
    }
)
VERDICTS = st.sampled_from([None, Granted(), Granted(), Denied("tokens", 1.0)])


class AdmissionMachine(RuleBasedStateMachine):
    """Keeps its own list of who waits and who runs, from the actions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.admission = Admission(CONFIG, running_requests=3)
        self.most = 3
        self.count = 0
        self.granted: set[str] = set()
        self.returned: Counter[str] = Counter()
        self.waiting: set[str] = set()
        self.running: set[str] = set()
        self.ended: Counter[str] = Counter()
        self.submitted: set[str] = set()

    def apply(self, actions: list[AdmissionAction]) -> None:
        for action in actions:
            match action:
                case Admit(request_id):
                    self.waiting.discard(request_id)
                    self.running.add(request_id)
                case Queue(request_id):
                    self.waiting.add(request_id)
                case Refuse(request_id):
                    assert request_id not in self.running
                    self.waiting.discard(request_id)
                    self.ended[request_id] += 1
                case GiveBack(returned):
                    self.returned[returned.claim_id] += 1

    @rule(
        tenant=st.sampled_from(["heavy", "light", "other", "one more"]),
        priority=st.sampled_from(["", "interactive", "batch"]),
        tokens=st.integers(1, 3_000) | st.integers(1, 300),
        patience=st.none() | st.floats(0.1, 30.0),
        verdict=VERDICTS,
    )
    def arrives(self, tenant: str, priority: str, tokens: int, patience: float | None, verdict: Granted | None) -> None:
        self.count += 1
        name = f"r{self.count}"
        deadline = None if patience is None else self.now + patience
        arrival = Arrival(name, tenant, priority, tokens, tokens // 2, tokens // 3, deadline, verdict)
        self.submitted.add(name)
        if verdict == Granted():
            self.granted.add(name)
        actions = self.admission.submit(arrival, self.now)
        assert actions[-1].request_id == name  # type: ignore[union-attr]
        self.apply(actions)

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 100), used=st.integers(0, 4_000))
    def finishes(self, choice: int, used: int) -> None:
        name = sorted(self.running)[choice % len(self.running)]
        self.running.remove(name)
        self.ended[name] += 1
        self.apply(self.admission.finish(name, used, self.now))

    @precondition(lambda self: self.running or self.waiting)
    @rule(choice=st.integers(0, 100))
    def is_cancelled(self, choice: int) -> None:
        alive = sorted(self.running | self.waiting)
        name = alive[choice % len(alive)]
        self.running.discard(name)
        self.waiting.discard(name)
        self.ended[name] += 1
        self.apply(self.admission.cancel(name, self.now))

    @precondition(lambda self: self.waiting)
    @rule(choice=st.integers(0, 100), cached=st.integers(0, 3_000))
    def gets_cached(self, choice: int, cached: int) -> None:
        self.admission.on_cached(sorted(self.waiting)[choice % len(self.waiting)], cached)
        self.apply(self.admission.on_time(self.now))  # another is next, and may be small enough to start

    @rule(seconds=st.floats(0.0, 15.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.admission.on_time(self.now))

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 100))
    def has_its_first_token(self, choice: int) -> None:
        name = sorted(self.running)[choice % len(self.running)]
        self.apply(self.admission.started(name, self.now))

    @rule(seats=st.integers(1, 5), starting=st.integers(0, 1_500) | st.just(math.inf))
    def capacity_changes(self, seats: int, starting: float) -> None:
        self.most = seats
        self.admission.bound(seats, starting)
        self.apply(self.admission.on_time(self.now))

    @invariant()
    def books_agree_and_bounds_hold(self) -> None:
        self.admission.check_integrity()
        occupancy = self.admission.occupancy
        assert (occupancy.queued_requests, occupancy.running_requests) == (len(self.waiting), len(self.running))
        assert occupancy.queued_requests <= 12
        assert occupancy.queued_tokens <= 6_000
        assert occupancy.running_tokens <= 2_000 or occupancy.running_requests == 1
        assert occupancy.running_requests <= 5
        assert self.admission.on_time(self.now) == [], "something was left undone"

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        assert not self.waiting & self.running
        assert set(self.ended) | self.waiting | self.running == self.submitted
        assert not set(self.ended) & (self.waiting | self.running)
        assert set(self.ended.values()) <= {1}

    @invariant()
    def every_claim_is_given_back_once_when_its_request_ends(self) -> None:
        assert set(self.returned) == self.granted & set(self.ended)
        assert set(self.returned.values()) <= {1}

    def teardown(self) -> None:
        for name in sorted(self.waiting | self.running):
            self.admission.cancel(name, self.now)
        self.admission.check_integrity()
        assert self.admission.occupancy.running_tokens == self.admission.occupancy.queued_tokens == 0


TestAdmissionStates = AdmissionMachine.TestCase
TestAdmissionStates.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.long
def test_an_operation_costs_about_the_same_with_100000_queued_as_with_1000() -> None:
    """Five times as much is a logarithm and cold caches; anything that looks at all requests costs a hundred times."""
    few, many = _queue_of(1_000), _queue_of(100_000)
    rounds = [(_cost_s(few, n), _cost_s(many, n)) for n in range(3)]
    assert min(cost for _, cost in rounds) < 5 * min(cost for cost, _ in rounds)


def _queue_of(requests: int) -> Admission:
    """Half from one tenant, half from tenants of their own; full, so that the next arrival has to push somebody out."""
    bounds = {"max_requests": requests, "max_tokens": 1_000_000_000, "most_wait_s": 1e6, "aging_s": 1e6}
    admission = Admission(AdmissionConfig.model_validate({"queue": bounds}), running_requests=1)
    for n in range(requests + 1):
        admission.submit(Arrival(f"r{n}", "big" if n % 2 else f"t{n}", CONFIG.classes[n % 3], 1_000), 0.0)
    return admission


def _cost_s(admission: Admission, part: int) -> float:
    """Seconds of CPU for 100 arrivals, push-outs, turns and cancels each."""
    started = time.process_time()
    for n in range(100 * part, 100 * part + 100):
        admission.submit(Arrival(f"new {n}", f"light {n}", "interactive", 1_000), 1.0)
        admission.submit(Arrival(f"full {n}", "big", "batch", 1_000), 1.0)
        admission.finish(next(iter(admission._running)), 900, 1.0)
        admission.cancel(f"r{7 * n + 9}", 1.0)
    return time.process_time() - started
