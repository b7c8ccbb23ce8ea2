"""A heap whose items can change their key or leave: what admission keeps its turns and its times in.

Changes leave a dead entry behind, which is skipped when it comes up; when half of the heap is dead it is rebuilt. So
every operation is O(log n), amortised.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

Key = TypeVar("Key", float, tuple[int, int])


class KeyedHeap(Generic[Key]):
    """Items are names. Equal keys come out in the order in which they were put."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, str]] = []
        self._entry: dict[str, int] = {}  # item -> the number of its only live entry
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, item: str) -> bool:
        return item in self._entry

    def put(self, item: str, key: Key) -> None:
        """Adds the item, or moves it."""
        number = next(self._numbers)
        self._entry[item] = number
        heapq.heappush(self._heap, (key, number, item))
        if len(self._heap) > 2 * len(self._entry) + 64:
            self._heap = [entry for entry in self._heap if self._live(entry)]
            heapq.heapify(self._heap)

    def drop(self, item: str) -> None:
        """An unknown item is no error."""
        self._entry.pop(item, None)

    def first(self) -> tuple[str, Key] | None:
        """The item with the smallest key; stays where it is."""
        while self._heap and not self._live(self._heap[0]):
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        key, _, item = self._heap[0]
        return item, key

    def _live(self, entry: tuple[Key, int, str]) -> bool:
        return self._entry.get(entry[2]) == entry[1]
