"""Sets of holders as bit masks, each kept once under a small number, however many blocks have it.

A million blocks have a few thousand different sets of holders. Counting the uses of a set lets it go with its last
block. It must not know blocks or workers.
"""

from __future__ import annotations

from collections.abc import Sequence


class HolderSets:
    """Number 0 is the empty set, always there and never counted."""

    def __init__(self) -> None:
        self.masks = [0]
        self._uses = [0]
        self._numbers = {0: 0}
        self._free: list[int] = []

    def __len__(self) -> int:
        """Numbers in use."""
        return len(self.masks) - len(self._free) - 1

    def number(self, mask: int) -> int:
        """The number of this set, a new one if need be. A set that is never used by `move` stays for ever."""
        found = self._numbers.get(mask)
        return self._add(mask) if found is None else found

    def move(self, old: int, new: int, blocks: int) -> None:
        """So many blocks had the set `old` and now have `new`."""
        if new:
            self._uses[new] += blocks
        if old:
            self._uses[old] -= blocks
            if not self._uses[old]:
                self._forget(old)

    def take_away(self, numbers: Sequence[int], holders: int) -> set[int]:
        """Takes holders out of these sets for all their blocks at once; the numbers that then have blocks and nobody
        left. Two numbers may then have equal sets: they stay apart."""
        for number in numbers:
            mask = self.masks[number]
            if mask & holders:
                if self._numbers.get(mask) == number:
                    del self._numbers[mask]
                self.masks[number] = mask & ~holders
                self._numbers.setdefault(mask & ~holders, number)
        return {number for number in numbers if self._uses[number] and not self.masks[number]}

    def check_integrity(self, uses: dict[int, int]) -> None:
        """`uses`: the blocks of each number, recounted. Raises AssertionError where they differ from the count here."""
        assert uses == {number: count for number, count in enumerate(self._uses) if count}, "uses are out of step"
        for mask, number in self._numbers.items():
            assert self.masks[number] == mask, "a set is listed under another's number"
        assert all(not self.masks[number] and not self._uses[number] for number in self._free), "a free number is used"

    def _add(self, mask: int) -> int:
        if self._free:
            number = self._free.pop()
            self.masks[number] = mask
        else:
            number = len(self.masks)
            self.masks.append(mask)
            self._uses.append(0)
        self._numbers[mask] = number
        return number

    def _forget(self, number: int) -> None:
        mask = self.masks[number]
        if self._numbers.get(mask) == number:
            del self._numbers[mask]
        self.masks[number] = 0
        self._free.append(number)
