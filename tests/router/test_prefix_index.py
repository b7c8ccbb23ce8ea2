"""The prefix index against a naive one: who holds how many of the first blocks, whatever came in whatever order."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router import prefix_index
from router.prefix_index import PrefixIndex

NAMES = ["a", "b", "c", "d"]
ROWS = {name: row for row, name in enumerate(NAMES)}
GUESS_S = 10.0
WORKER = st.sampled_from(NAMES)
# Upper halves name the line of the table; a chain of 20 blocks and some that belong to nobody's.
CHAIN = [(17 * i % 5) << 60 | i for i in range(1, 21)]
BLOCKS = st.lists(st.sampled_from([*CHAIN, *range(1000, 1010)]), max_size=25)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that much happens between the steps of a sweep, and a prompt is looked up in several parts."""
    for name in ("_SWEEP_SETS", "_SWEEP_SLOTS", "_MATCH_BLOCKS"):
        monkeypatch.setattr(prefix_index, name, 8)


def leading(chain: Iterable[int], held: set[int]) -> int:
    count = 0
    for block in chain:
        if block not in held:
            break
        count += 1
    return count


def index_of(*names: str, most_blocks: int = 1_000, pool: int = 1_000) -> PrefixIndex:
    index = PrefixIndex(most_blocks, GUESS_S)
    for row, name in enumerate(names):
        index.add(name, row, pool)
    return index


class Index(RuleBasedStateMachine):
    """No bound is met: the index must be exact."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(500, GUESS_S)
        self.held: dict[str, set[int]] = {}
        self.guessed: dict[str, list[set[int]]] = {}
        self.now = 0.0
        self.index.on_time(self.now)

    @rule(worker=WORKER)
    def add(self, worker: str) -> None:
        self.index.add(worker, ROWS[worker], 100)
        self.held[worker], self.guessed[worker] = set(), [set(), set()]

    @rule(worker=WORKER)
    def gone(self, worker: str) -> None:
        self.index.worker_gone(worker)
        self.held.pop(worker, None)
        self.guessed.pop(worker, None)

    @rule(worker=WORKER)
    def cleared(self, worker: str) -> None:
        self.index.blocks_cleared(worker)
        if worker in self.held:
            self.held[worker], self.guessed[worker] = set(), [set(), set()]

    @rule(worker=WORKER, blocks=BLOCKS)
    def stored(self, worker: str, blocks: list[int]) -> None:
        self.index.blocks_stored(worker, blocks)
        if worker in self.held:
            self.held[worker] |= set(blocks)

    @rule(worker=WORKER, start=st.integers(0, 19), end=st.integers(0, 20))
    def stored_run(self, worker: str, start: int, end: int) -> None:
        self.stored(worker, CHAIN[start:end])

    @rule(worker=WORKER, blocks=BLOCKS)
    def removed(self, worker: str, blocks: list[int]) -> None:
        self.index.blocks_removed(worker, blocks)
        for known in (self.held.get(worker, set()), *self.guessed.get(worker, [])):
            known.difference_update(blocks)

    @rule(worker=WORKER, end=st.integers(0, 20))
    def expect(self, worker: str, end: int) -> None:
        self.index.expect(worker, CHAIN[:end])
        if worker in self.guessed:
            self.guessed[worker][0] |= set(CHAIN[:end])

    @rule(seconds=st.floats(0, GUESS_S))
    def time_passes(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        if self.now // GUESS_S > before // GUESS_S:
            self.now = self.now // GUESS_S * GUESS_S
            self.guessed = {worker: [set(), young] for worker, (young, _) in self.guessed.items()}
        self.index.on_time(self.now)

    @rule(steps=st.integers(1, 5))
    def sweep(self, steps: int) -> None:
        for _ in range(steps):
            self.index.sweep()

    @rule()
    def sweep_all(self) -> None:
        while self.index.sweep():
            pass
        assert len(self.index) == len(
            set().union(*self.held.values(), *(known for both in self.guessed.values() for known in both))
        )

    @invariant()
    def matches_like_the_naive_one(self) -> None:
        counts = self.index.match(CHAIN).tolist() + [0] * len(NAMES)
        for worker, row in ROWS.items():
            known = [self.held.get(worker, set()), *self.guessed.get(worker, [])]
            assert counts[row] == max(leading(CHAIN, blocks) for blocks in known)

    @invariant()
    def equals_what_workers_hold(self) -> None:
        self.index.check_integrity(self.held)
        assert not self.index.suspects


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


class BoundedIndex(RuleBasedStateMachine):
    """Less memory than the workers have blocks, and workers that claim more than they can hold: the index stays
    within its bound and knows no block of an honest worker that it does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.index = index_of(*NAMES, most_blocks=12, pool=15)
        self.held: dict[str, set[int]] = {name: set() for name in NAMES}

    @rule(worker=WORKER, blocks=BLOCKS)
    def stored(self, worker: str, blocks: list[int]) -> None:
        self.index.blocks_stored(worker, blocks)
        self.held[worker] |= set(blocks)

    @rule(worker=WORKER, blocks=BLOCKS)
    def removed(self, worker: str, blocks: list[int]) -> None:
        self.index.blocks_removed(worker, blocks)
        self.held[worker] -= set(blocks)

    @rule(worker=WORKER)
    def cleared(self, worker: str) -> None:
        self.index.blocks_cleared(worker)
        assert worker not in self.index.suspects
        self.held[worker] = set()

    @rule(worker=WORKER, end=st.integers(0, 20))
    def expect(self, worker: str, end: int) -> None:
        self.index.expect(worker, CHAIN[:end])

    @rule()
    def sweep(self) -> None:
        self.index.sweep()

    @rule()
    def match(self) -> None:
        self.index.match(CHAIN)

    @invariant()
    def is_bounded_and_right(self) -> None:
        assert len(self.index) <= 12
        self.index.check_integrity()
        if self.index.evicted:
            self.index.check_integrity(self.held)


TestBoundedIndex = BoundedIndex.TestCase
TestBoundedIndex.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_prompt_that_nobody_knows_matches_nobody() -> None:
    assert index_of("a", "b").match(CHAIN).tolist() == [0, 0]
    assert index_of("a", "b").match([]).tolist() == [0, 0]
    assert PrefixIndex(10, GUESS_S).match(CHAIN).tolist() == []


def test_a_hole_in_what_a_worker_holds_ends_its_match() -> None:
    index = index_of("a", "b")
    index.blocks_stored("a", CHAIN)
    index.blocks_stored("b", CHAIN)
    index.blocks_removed("a", [CHAIN[7]])
    assert index.match(CHAIN).tolist() == [7, 20]


def test_a_guess_holds_until_it_expires_and_falls_with_the_first_removal() -> None:
    index = index_of("a", "b")
    index.on_time(0.0)
    index.expect("a", CHAIN)
    index.expect("b", CHAIN)
    index.blocks_removed("b", [CHAIN[3]])
    index.on_time(GUESS_S)
    assert index.match(CHAIN).tolist() == [20, 3]
    index.blocks_stored("a", CHAIN[:5])
    index.on_time(2 * GUESS_S)
    assert index.match(CHAIN).tolist() == [5, 0]


def test_a_worker_that_is_gone_gives_its_bits_and_blocks_back() -> None:
    index = index_of("a", "b", most_blocks=100)
    for _ in range(50):
        index.add("a", 0, 1_000)
        index.blocks_stored("a", CHAIN)
        index.worker_gone("a")
        assert index.match(CHAIN).tolist() == [0, 0]
        while index.sweep():
            pass
    assert len(index) == 0
    assert index._bits._made <= 3  # the same few bits, again and again


def swept_one_set_at_a_time(monkeypatch: pytest.MonkeyPatch) -> PrefixIndex:
    """Workers a to d; a, b and c hold blocks, and a has just gone."""
    monkeypatch.setattr(prefix_index, "_SWEEP_SETS", 1)
    index = index_of("a", "b", "c", "d")
    index.blocks_stored("a", CHAIN[:3])
    index.blocks_stored("b", CHAIN[1:2])
    index.blocks_stored("c", CHAIN[2:3])
    index.worker_gone("a")
    return index


def test_a_set_that_is_made_during_a_sweep_has_no_bit_that_is_being_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    index = swept_one_set_at_a_time(monkeypatch)
    assert index.sweep()
    index.blocks_stored("b", CHAIN[2:3])  # before, a and c had it
    while index.sweep():
        pass
    index.add("e", 4, 1_000)  # gets the bit of a
    assert index.match(CHAIN[2:3]).tolist() == [0, 1, 1, 0, 0]


def test_a_set_number_that_is_used_again_during_a_sweep_keeps_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    index = swept_one_set_at_a_time(monkeypatch)
    for _ in range(3):
        assert index.sweep()
    index.blocks_stored("b", CHAIN[:1])  # the last block of a set that was a's alone: its number is free
    index.blocks_stored("d", CHAIN[10:12])
    while index.sweep():
        pass
    index.check_integrity({"b": CHAIN[:2], "c": CHAIN[2:3], "d": CHAIN[10:12]})


def test_a_worker_that_claims_more_than_its_pool_is_believed_up_to_it_and_suspected_until_it_begins_anew() -> None:
    index = index_of("a", pool=8)
    index.blocks_stored("a", CHAIN[:6])
    assert not index.suspects
    index.blocks_stored("a", CHAIN)
    assert index.suspects == {"a"}
    assert index.held_by("a") == 8
    index.blocks_stored("a", CHAIN[:6])
    index.check_integrity()
    index.blocks_cleared("a")
    assert not index.suspects
    assert index.match(CHAIN).tolist() == [0]


def test_a_full_honest_worker_is_not_suspected_for_saying_again_what_it_holds() -> None:
    index = index_of("a", pool=20)
    index.blocks_stored("a", CHAIN)
    index.blocks_stored("a", CHAIN)
    assert not index.suspects
    assert index.match(CHAIN).tolist() == [20]


def test_guesses_make_room_before_what_workers_say() -> None:
    index = index_of("a", "b", most_blocks=2_000)
    held, guessed, new = np.random.default_rng(1).integers(1, 2**64 - 1, (3, 1_000), np.uint64)
    index.blocks_stored("a", held)
    index.expect("b", guessed)
    for block in new[:800].tolist():
        index.blocks_stored("b", [block])
    assert index.evicted == 0
    index.check_integrity({"a": held.tolist(), "b": new[:800].tolist()})


def test_what_is_asked_for_stays_longer_than_what_is_not() -> None:
    index = index_of("a", most_blocks=400, pool=10_000)
    index.blocks_stored("a", CHAIN)
    draw = random.Random(1)
    for _ in range(500):
        index.match(CHAIN)
        index.blocks_stored("a", [draw.getrandbits(64) for _ in range(4)])
    assert index.match(CHAIN).tolist() == [20]
    assert index.evicted > 1_000
    assert len(index) <= 400


def test_what_is_stored_again_stays_longer_than_what_is_not() -> None:
    index = index_of("a", "b", most_blocks=400, pool=10_000)
    kept, others = np.random.default_rng(1).integers(1, 2**64 - 1, (2, 100), np.uint64)
    index.blocks_stored("a", kept)
    index.blocks_stored("a", others)
    index.blocks_stored("b", kept)
    index.blocks_stored("b", np.random.default_rng(2).integers(1, 2**64 - 1, 300, np.uint64))
    assert index.match(kept).tolist()[1] == 100
    assert index.evicted == 100


def test_integrity_names_the_worker_whose_blocks_are_wrong() -> None:
    index = index_of("a", "b")
    index.blocks_stored("a", CHAIN)
    with pytest.raises(AssertionError, match="a does not hold 1 "):
        index.check_integrity({"a": CHAIN[1:], "b": []})
    with pytest.raises(AssertionError, match="1 blocks of b"):
        index.check_integrity({"a": CHAIN, "b": [1]})


@pytest.mark.parametrize("workers", [64, 1_000])
def test_many_workers_with_a_common_prefix_are_told_apart(workers: int) -> None:
    index = PrefixIndex(200_000, GUESS_S)
    for row in range(workers):
        index.add(f"w{row}", row, 1_000)
        index.blocks_stored(f"w{row}", CHAIN[: row % 20 + 1])
        index.expect(f"w{row}", CHAIN[: row % 20])
    assert index.match(CHAIN).tolist() == [row % 20 + 1 for row in range(workers)]
    index.worker_gone("w19")
    assert index.match(CHAIN)[19] == 0
    assert index.match(CHAIN)[39] == 20


def test_names_beyond_64_bits_or_below_zero_are_the_callers_mistake() -> None:
    index = index_of("a")
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            index.blocks_stored("a", [wrong])
    index.blocks_stored("a", [0])
    assert index.match([0]).tolist() == [1]


def test_arrays_and_lists_are_taken_alike() -> None:
    index = index_of("a")
    index.blocks_stored("a", np.array(CHAIN, np.uint64))
    assert index.match(CHAIN).tolist() == index.match(np.array(CHAIN, np.uint64)).tolist() == [20]
