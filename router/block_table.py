"""A map of fixed size from 64-bit block names to small numbers, for a million blocks in about 30 bytes each.

Eight entries share one line of the processor's cache, so a look-up costs one access to memory, and hundreds of them
are made at once. It never grows, so it never stops the event loop to do so. It must not know what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint32]
Slots = npt.NDArray[np.intp]

_WAYS = 8
_HAND_LINES = 8_192
_SETTLE = 64
ABSENT, NO_SLOT = -1, -2
_FILL = 4  # entries for each line at capacity: with twice the space, about 1 in 150 finds its line full


class BlockTable:
    """Holds up to `capacity` entries; the caller makes room before it adds more. Neither a key nor a
    value may be 0: that is an empty slot.

    An entry lives in the line that its key names, or, where that is full, in a dict beside the table.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lines = np.uint64(-(-capacity // _FILL))
        self._keys: npt.NDArray[np.uint64] = np.zeros((int(self._lines), _WAYS), np.uint64)
        self._values: Values = np.zeros(self._keys.size, np.uint32)
        self._fresh = np.zeros(self._keys.size, np.bool_)  # spoken of again since the hand last passed
        self._overflow: dict[int, int] = {}
        self._unsettled: list[int] = []
        self._hand = 0
        self._count = 0
        # The same memory once more: single elements are read faster so.
        self._one_key = self._keys.reshape(-1).data
        self._one_value = self._values.data
        self._one_fresh = self._fresh.data

    def __len__(self) -> int:
        return self._count

    # One entry

    def get(self, key: int) -> int:
        """The key's value; 0 when it is not there."""
        slot = self._slot(key)
        return self._overflow.get(key, 0) if slot < 0 else self._one_value[slot]

    def put(self, key: int, value: int) -> None:
        """Adds or replaces."""
        slot, known = self._slot(key), True
        if slot < 0 and key not in self._overflow:
            slot, known = self._slot(0, near=key), False
            self._count += 1
        if slot < 0:
            self._overflow[key] = value
        else:
            self._one_key[slot], self._one_value[slot], self._one_fresh[slot] = key, value, known

    def remove(self, key: int) -> None:
        """Takes the key out, which must be there."""
        slot = self._slot(key)
        if slot < 0:
            del self._overflow[key]
        else:
            self._one_key[slot] = self._one_value[slot] = 0
        self._count -= 1

    # Many entries

    def find(self, keys: Keys, leading: bool = False) -> tuple[Values, Slots]:
        """The value of each key, 0 where it is not there, and its slot: `ABSENT` where it is not there, `NO_SLOT` where
        it lies beside the table. `leading`: what comes after the first that is not there need not be right."""
        lines = self._lines_of(keys)
        hits = (self._keys.take(lines, axis=0) == keys[:, None]).ravel().nonzero()[0]
        found = hits // _WAYS
        places = lines.take(found) * _WAYS + hits % _WAYS
        if len(found) == len(keys):
            return self._values.take(places), places
        slots = np.full(len(keys), ABSENT, np.intp)
        slots[found] = places
        values = np.zeros(len(keys), np.uint32)
        values[found] = self._values.take(places)
        if self._overflow:
            self._find_overflow(keys, values, slots, leading)
        return values, slots

    def touch(self, slots: Slots) -> None:
        """These were of use; what is no slot is left out."""
        self._fresh[slots[slots >= 0]] = True

    def put_many(self, keys: Keys, values: Values, slots: Slots) -> None:
        """Adds or replaces; `slots` is what `find` said of the same keys, none of which may occur twice."""
        there = slots >= 0
        self._values[slots[there]] = values[there]
        self._fresh[slots[there]] = True
        if there.all():
            return
        crowded = self._add_spread(keys, values, np.flatnonzero(slots == ABSENT))
        for i in (*np.flatnonzero(slots == NO_SLOT).tolist(), *crowded.tolist()):
            self.put(int(keys[i]), int(values[i]))

    def remove_slots(self, slots: Slots) -> None:
        """Empties slots, all of them taken and none named twice."""
        self._keys.reshape(-1)[slots] = 0
        self._values[slots] = 0
        self._count -= len(slots)

    # All entries

    def parts(self, slots: int) -> Iterator[tuple[Slots, Values]]:
        """The taken slots and their values, so many slots at a time; entries may change between two parts."""
        for start in range(0, self._values.size, slots):
            values = self._values[start : start + slots]
            taken = np.flatnonzero(values)
            yield taken + start, values[taken]

    def overflow(self) -> list[tuple[int, int]]:
        """The entries that have no slot, with their values."""
        return list(self._overflow.items())

    def keys_at(self, slots: Slots) -> list[int]:
        found: list[int] = self._keys.reshape(-1)[slots].tolist()
        return found

    def pass_hand(self) -> tuple[Slots, Values, npt.NDArray[np.bool_]]:
        """Moves the hand of a clock a little further. The entries there, their values, and which of them nobody spoke
        of again since the hand last came by; the others lose their mark. Only what has a slot is passed.

        It takes one of the eight places of every line before it takes the next: if it emptied whole lines, those that
        it comes to last would overflow.
        """
        self._settle_some()
        lines = len(self._keys)
        place, start = divmod(self._hand, lines)
        part = slice(start * _WAYS + place, (start + _HAND_LINES) * _WAYS, _WAYS)
        self._hand = (place * lines + min(start + _HAND_LINES, lines)) % self._values.size
        taken = np.flatnonzero(self._values[part])
        stale = ~self._fresh[part][taken]
        self._fresh[part] = False
        return taken * _WAYS + part.start, self._values[part][taken], stale

    def check_integrity(self) -> None:
        """Raises AssertionError where the table contradicts itself."""
        keys = self._keys.reshape(-1)
        taken = np.flatnonzero(keys)
        assert np.array_equal(taken, np.flatnonzero(self._values)), "a key without a value, or a value without a key"
        assert np.array_equal(self._lines_of(keys[taken]), taken // _WAYS), "an entry lies in another's line"
        everything = [*keys[taken].tolist(), *self._overflow]
        assert len(set(everything)) == len(everything) == self._count, "a key is there twice, or the count is wrong"

    # Inside

    def _lines_of(self, keys: Keys) -> Slots:
        return ((keys >> np.uint64(32)) * self._lines >> np.uint64(32)).astype(np.intp)

    def _slot(self, key: int, near: int | None = None) -> int:
        """Where `key` is in its own line, or in that of `near`; -1 when it is not there."""
        start = ((key if near is None else near) >> 32) * int(self._lines) >> 32
        line = self._one_key[start * _WAYS : start * _WAYS + _WAYS].tolist()
        return start * _WAYS + line.index(key) if key in line else -1

    def _settle_some(self) -> None:
        """Gives a slot to those that lie beside the table and have room in their line by now; a few at a time."""
        self._unsettled = self._unsettled or list(self._overflow)
        for key in self._unsettled[-_SETTLE:]:
            if key in self._overflow and (slot := self._slot(0, near=key)) >= 0:
                self._one_key[slot], self._one_value[slot], self._one_fresh[slot] = key, self._overflow.pop(key), False
        del self._unsettled[-_SETTLE:]

    def _find_overflow(self, keys: Keys, values: Values, slots: Slots, leading: bool) -> None:
        for i in (values == 0).nonzero()[0].tolist():
            if value := self._overflow.get(int(keys[i])):
                values[i], slots[i] = value, NO_SLOT
            elif leading:
                break

    def _add_spread(self, keys: Keys, values: Values, absent: Slots) -> Slots:
        """Of the absent keys, adds one for each line that has room; which ones are still to be put."""
        lines = self._lines_of(keys[absent])
        free = self._keys.take(lines, axis=0) == 0
        easy = np.zeros(len(absent), np.bool_)
        easy[np.unique(lines, return_index=True)[1]] = True
        easy &= free.any(axis=1)
        slots = lines[easy] * _WAYS + free[easy].argmax(axis=1)
        chosen = absent[easy]
        self._keys.reshape(-1)[slots] = keys[chosen]
        self._values[slots] = values[chosen]
        self._fresh[slots] = False
        self._count += len(chosen)
        return absent[~easy]
