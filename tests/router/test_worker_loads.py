"""The load of workers: decisions count at once, reports are not counted twice, and rows are used again clean."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.engine import Role
from router.worker_loads import Load, WorkerFacts, WorkerLoads

NAMES = ["a", "b", "c"]


def loads_of(*names: str, role: Role = Role.PREFILL) -> WorkerLoads:
    loads = WorkerLoads()
    for name in names:
        loads.add(WorkerFacts(name, role, 100))
    return loads


def usable(loads: WorkerLoads, role: Role = Role.PREFILL, now: float = 0.0, avoid: str = "") -> list[str]:
    return [loads.names[row] for row in loads.usable(role, frozenset(avoid.split()), now).tolist()]


def load(loads: WorkerLoads, name: str) -> Load:
    row = loads.row(name)
    assert row is not None
    of = loads.of(np.array([row]))
    return Load(float(of.prefill_tokens[0]), float(of.sequences[0]), float(of.blocks[0]))


def busy_since(loads: WorkerLoads, name: str) -> float:
    row = loads.row(name)
    assert row is not None
    return float(loads.of(np.array([row])).busy_since[0])


def test_a_reservation_counts_at_once_and_is_given_back_in_two_steps() -> None:
    loads = loads_of("a")
    loads.reserve("1", "a", Load(500, 1, 20), 0.0)
    assert load(loads, "a") == Load(500, 1, 20)
    loads.computed("1", 0.0)
    loads.computed("1", 0.0)
    assert load(loads, "a") == Load(0, 1, 20)
    loads.settle("1")
    loads.settle("1")
    assert load(loads, "a") == Load(0, 0, 0)


def test_the_work_of_other_routers_counts_and_our_own_is_not_counted_twice() -> None:
    loads = loads_of("a")
    loads.reserve("1", "a", Load(500, 1, 20), 0.0)
    loads.report("a", Load(800, 3, 10))
    assert load(loads, "a") == Load(800, 3, 20)
    loads.reserve("2", "a", Load(100, 1, 5), 0.0)
    assert load(loads, "a") == Load(900, 4, 25)
    loads.settle("1")
    loads.settle("2")
    assert load(loads, "a") == Load(300, 2, 0)


def test_a_worker_that_has_not_looked_into_its_cache_yet_reports_no_work_of_others() -> None:
    loads = loads_of("a")
    loads.reserve("1", "a", Load(100, 1, 50, cached_tokens=1_400), 0.0)
    loads.report("a", Load(1_500, 1, 40))
    assert load(loads, "a") == Load(100, 1, 50)
    loads.report("a", Load(1_800, 1, 40))
    assert load(loads, "a") == Load(400, 1, 50)
    loads.computed("1", 0.1)
    loads.report("a", Load(300, 1, 40))
    assert load(loads, "a") == Load(300, 1, 50)


def test_a_worker_is_busy_since_it_began_with_the_first_of_our_prompts_that_is_left() -> None:
    loads = loads_of("a")
    assert busy_since(loads, "a") == math.inf
    loads.report("a", Load(1_000))
    assert busy_since(loads, "a") == math.inf, "what others sent says nothing of when"
    loads.reserve("1", "a", Load(100), 1.0)
    loads.reserve("2", "a", Load(100), 2.0)
    assert busy_since(loads, "a") == 1.0
    loads.computed("1", 3.0)
    assert busy_since(loads, "a") == 3.0
    loads.settle("2")
    assert busy_since(loads, "a") == math.inf
    loads.reserve("3", "a", Load(100), 9.0)
    assert busy_since(loads, "a") == 9.0


def test_only_ready_workers_of_the_pool_whose_circuit_is_closed_are_usable() -> None:
    loads = loads_of("a", "b", "c", "d")
    loads.add(WorkerFacts("e", Role.DECODE, 100))
    loads.add(WorkerFacts("f", Role.PREFILL, 100))
    loads.set_ready("a", False)
    loads.close_until("b", 5.0)
    assert usable(loads, avoid="c nobody") == ["d", "f"]
    assert usable(loads, now=5.0) == ["b", "c", "d", "f"]
    assert usable(loads, Role.DECODE) == ["e"]
    loads.set_ready("a", True)
    assert "a" in usable(loads)


def test_where_all_circuits_are_open_it_is_not_the_workers_and_all_are_usable() -> None:
    loads = loads_of("a", "b")
    loads.add(WorkerFacts("d", Role.DECODE, 100))
    for worker_id in "ab":
        loads.close_until(worker_id, 5.0)
    assert usable(loads) == []
    assert usable(loads, Role.DECODE) == ["d"]
    loads.close_until("d", 5.0)
    assert (usable(loads), usable(loads, Role.DECODE)) == (["a", "b"], ["d"])


def test_where_prefill_workers_may_not_decode_their_good_name_does_not_close_the_last_decode_worker() -> None:
    for may_decode, left in ((True, []), (False, ["d"])):
        loads = WorkerLoads(may_decode)
        loads.add(WorkerFacts("a", Role.PREFILL, 100))
        loads.add(WorkerFacts("d", Role.DECODE, 100))
        loads.close_until("d", 5.0)
        assert usable(loads, Role.DECODE) == left


def test_a_prefill_worker_that_fails_everything_is_left_alone_while_decode_can_do_its_work() -> None:
    loads = WorkerLoads(prefill_may_decode=False)
    loads.add(WorkerFacts("a", Role.PREFILL, 100))
    loads.add(WorkerFacts("d", Role.DECODE, 100))
    loads.close_until("a", 5.0)
    assert (usable(loads), usable(loads, Role.DECODE)) == ([], ["d"])


def test_a_row_that_is_used_again_is_clean() -> None:
    loads = loads_of("a", "b")
    loads.add(WorkerFacts("a", Role.PREFILL, 100))
    loads.close_until("a", 100.0)
    loads.report("a", Load(5, 5, 5))
    loads.reserve("1", "a", Load(7, 7, 7), 0.0)
    row = loads.row("a")
    loads.remove("a")
    assert loads.row("a") is None
    assert loads.add(WorkerFacts("z", Role.DECODE, 50)) == row
    assert load(loads, "z") == Load()
    assert usable(loads, Role.DECODE) == ["z"]
    assert usable(loads) == ["b"]
    loads.settle("1")
    loads.computed("1", 0.0)
    assert load(loads, "z") == Load()
    assert loads.of(np.array([row])).num_blocks.tolist() == [50]


def test_what_is_said_of_unknown_workers_is_left_out() -> None:
    loads = loads_of("a")
    loads.reserve("1", "nobody", Load(1, 1, 1), 0.0)
    loads.report("nobody", Load(1, 1, 1))
    loads.set_ready("nobody", True)
    loads.close_until("nobody", 1.0)
    loads.remove("nobody")
    loads.check_integrity()
    assert usable(loads) == ["a"]


AMOUNT = st.integers(0, 10_000)


class Loads(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loads = WorkerLoads()
        self.reserved: dict[str, tuple[str, int]] = {}

    @rule(name=st.sampled_from(NAMES), role=st.sampled_from(list(Role)))
    def add(self, name: str, role: Role) -> None:
        self.remove(name)
        self.loads.add(WorkerFacts(name, role, 10))

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.loads.remove(name)
        self.reserved = {attempt: held for attempt, held in self.reserved.items() if held[0] != name}

    @rule(name=st.sampled_from(NAMES), attempt=st.sampled_from("1234"), tokens=AMOUNT)
    def reserve(self, name: str, attempt: str, tokens: int) -> None:
        self.loads.reserve(attempt, name, Load(tokens, 1, tokens / 2), 0.0)
        self.reserved.pop(attempt, None)
        if self.loads.row(name) is not None:
            self.reserved[attempt] = (name, tokens)

    @rule(attempt=st.sampled_from("1234"))
    def computed(self, attempt: str) -> None:
        self.loads.computed(attempt, 0.0)
        if attempt in self.reserved:
            self.reserved[attempt] = (self.reserved[attempt][0], 0)

    @rule(attempt=st.sampled_from("1234"))
    def settle(self, attempt: str) -> None:
        self.loads.settle(attempt)
        self.reserved.pop(attempt, None)

    @rule(name=st.sampled_from(NAMES), tokens=AMOUNT)
    def report(self, name: str, tokens: int) -> None:
        self.loads.report(name, Load(tokens, 2, 3))
        if self.loads.row(name) is not None:
            assert load(self.loads, name).prefill_tokens >= tokens

    @invariant()
    def counts_at_least_what_is_reserved(self) -> None:
        self.loads.check_integrity()
        for name in NAMES:
            if self.loads.row(name) is not None:
                own = sum(tokens for worker, tokens in self.reserved.values() if worker == name)
                assert load(self.loads, name).prefill_tokens >= own


TestLoads = Loads.TestCase
TestLoads.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
