"""The simulated block pool: sharing, reuse and eviction."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.simulated_blocks import BlockPool


def test_the_block_that_has_been_free_longest_is_given_away_first() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block in blocks:
        pool.remember(block, 100 + block)
    pool.release(blocks)  # the end of the prefix becomes free first
    assert pool.find([100, 101, 102]) == [0, 1, 2]
    assert pool.allocate(1) == [2]
    assert pool.find([100, 101, 102]) == [0, 1]


def test_a_held_block_is_never_given_away() -> None:
    pool = BlockPool(2)
    kept, given = pool.allocate(2)
    pool.hold([kept])
    pool.release([kept, given])
    assert pool.available == 1
    assert pool.allocate(1) == [given]
    assert pool.available == 0


class PoolMachine(RuleBasedStateMachine):
    """Against a model that keeps nothing but who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.held: list[list[int]] = []
        self.content = 0
        self.known: set[int] = set()  # by whoever follows the changes

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        blocks = self.pool.allocate(min(count, self.pool.available))
        assert not {b for held in self.held for b in held} & set(blocks)
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(self.held))
        self.pool.hold(blocks)
        self.held.append(list(blocks))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def remember_and_find(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([b for held in self.held for b in held]))
        self.content += 1
        self.pool.remember(block, self.content)
        found = self.pool.find([self.content])
        assert found in ([block], [])  # a block keeps its first content

    @rule(content=st.integers(1, 20))
    def reuse(self, content: int) -> None:
        found = self.pool.find([content])
        before = self.pool.available
        free = self.pool.free_among(found)
        self.pool.hold(found)
        assert self.pool.available == before - free
        self.held.append(found)

    @rule()
    def tell_changes(self) -> None:
        delta = self.pool.changes.take()
        assert not delta.cleared
        self.known = (self.known - set(delta.removed)) | set(delta.stored)
        assert self.known == self.pool.contents

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check_integrity()
        assert self.pool.used == len({b for held in self.held for b in held})


TestPoolMachine = PoolMachine.TestCase


def test_what_a_pool_forgets_is_not_found_again_and_it_forgets_nothing_while_a_block_is_held() -> None:
    pool = BlockPool(4)
    held = pool.allocate(2)
    pool.remember(held[0], 11)
    assert not pool.forget()
    assert pool.find([11]) == [held[0]]
    pool.release(held)
    pool.changes.take()
    assert pool.forget()
    assert (pool.find([11]), pool.contents) == ([], frozenset())
    assert pool.changes.take().cleared
    pool.check_integrity()
