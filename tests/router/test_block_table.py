"""The table of blocks against a plain dict: one by one, many at once, crowded lines, and the hand of its clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.block_table import ABSENT, NO_SLOT, BlockTable, Keys

# Keys of equal upper half share a line: few upper halves crowd the lines far beyond what chance would do.
KEY = st.builds(lambda upper, lower: upper << 32 | lower, st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(1, 14))
VALUE = st.integers(1, 2**32 - 1)


def keys(*numbers: int) -> Keys:
    return np.array(numbers, np.uint64)


def passage(table: BlockTable) -> list[int]:
    """The stale keys that the hand passes next."""
    slots, _, stale = table.pass_hand()
    return table.keys_at(slots[stale])


class Table(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable(24)
        self.model: dict[int, int] = {}

    @rule(key=KEY, value=VALUE)
    def put(self, key: int, value: int) -> None:
        self.table.put(key, value)
        self.model[key] = value

    @rule(entries=st.dictionaries(KEY, VALUE, max_size=30))
    def put_many(self, entries: dict[int, int]) -> None:
        names = keys(*entries)
        self.table.put_many(names, np.array(list(entries.values()), np.uint32), self.table.find(names)[1])
        self.model |= entries

    @rule(key=KEY)
    def remove(self, key: int) -> None:
        if self.model.pop(key, 0):
            self.table.remove(key)

    @rule(wanted=st.sets(KEY))
    def remove_slots(self, wanted: set[int]) -> None:
        slots = self.table.find(keys(*wanted))[1]
        for key, slot in zip(wanted, slots.tolist(), strict=True):
            if slot >= 0:
                del self.model[key]
        self.table.remove_slots(slots[slots >= 0])

    @rule()
    def pass_hand(self) -> None:
        passed, values, _ = self.table.pass_hand()
        assert values.tolist() == [self.model[key] for key in self.table.keys_at(passed)]

    @rule(wanted=st.sets(KEY))
    def find(self, wanted: set[int]) -> None:
        values, slots = self.table.find(keys(*wanted))
        assert values.tolist() == [self.model.get(key, 0) for key in wanted]
        assert [slot == ABSENT for slot in slots.tolist()] == [key not in self.model for key in wanted]
        beside = dict(self.table.overflow())
        assert [slot == NO_SLOT for slot in slots.tolist()] == [key in beside for key in wanted]
        assert [self.table.get(key) for key in wanted] == values.tolist()
        leading = self.table.find(keys(*wanted), leading=True)[0].tolist()
        first_absent = [*values.tolist(), 0].index(0)
        assert leading[: first_absent + 1] == values.tolist()[: first_absent + 1]

    @invariant()
    def holds_what_was_put(self) -> None:
        self.table.check_integrity()
        assert len(self.table) == len(self.model)
        found = dict(self.table.overflow())
        for slots, values in self.table.parts(16):
            found |= dict(zip(self.table.keys_at(slots), values.tolist(), strict=True))
        assert found == self.model


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_the_hand_finds_what_nobody_spoke_of_again_since_it_last_came_by() -> None:
    table = BlockTable(4)
    for key in (1, 2, 3, 4):
        table.put(key, key * 10)
    table.touch(table.find(keys(2))[1])
    table.put(4, 40)
    first, second = [passage(table) for _ in range(8)], [passage(table) for _ in range(8)]
    assert first == [[1], [], [3], [], [], [], [], []]
    assert second == [[1], [2], [3], [4], [], [], [], []]


def test_an_entry_beside_the_table_gets_a_slot_once_its_line_has_room() -> None:
    table = BlockTable(4)
    for key in range(1, 10):
        table.put(key, 7)
    assert [key for key, _ in table.overflow()] == [9]
    for key in range(1, 9):
        table.remove(key)
    assert passage(table) == [9]
    assert table.overflow() == []
    table.check_integrity()


@pytest.mark.parametrize("capacity", [1, 1_000, 1_000_000])
def test_its_memory_is_fixed_by_its_capacity(capacity: int) -> None:
    table = BlockTable(capacity)
    arrays = sum(part.nbytes for part in vars(table).values() if isinstance(part, np.ndarray))
    assert arrays <= 26 * capacity + 104


def test_few_entries_find_their_line_full() -> None:
    table = BlockTable(20_000)
    names = np.random.default_rng(0).integers(1, 2**64 - 1, 20_000, np.uint64)
    table.put_many(names, np.full(len(names), 5, np.uint32), table.find(names)[1])
    assert len(table) == 20_000
    assert len(table.overflow()) < 200
