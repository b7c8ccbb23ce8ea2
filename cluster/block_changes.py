"""What changes in an engine's prefix cache, as chain hashes: the net of many small changes, in bounded memory.

Pure state. It must not know which engine it is, nor who is told.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """Applied in this order: `cleared` (nothing is held any more), `removed`, `stored`; no hash is in both lists.

    Hashes are those of `block_hashes`: 64 bits, one for each full block that a prompt can reuse.
    """

    cleared: bool = False
    removed: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()


class BlockChanges:
    """Collects until it is taken. What comes and goes in between is never told, so it holds no more hashes than the
    engine has blocks, twice: those that were there when it was last taken and those that are there now."""

    def __init__(self) -> None:
        self._cleared = False
        self._removed: dict[int, None] = {}
        self._stored: dict[int, None] = {}

    def __bool__(self) -> bool:
        return self._cleared or bool(self._removed) or bool(self._stored)

    def store(self, content: int) -> None:
        """The block was not held before."""
        if content in self._removed:
            del self._removed[content]
        else:
            self._stored[content] = None

    def remove(self, content: int) -> None:
        """The block was held before."""
        if content in self._stored:
            del self._stored[content]
        else:
            self._removed[content] = None

    def clear(self) -> None:
        self._cleared = True
        self._removed.clear()
        self._stored.clear()

    def add(self, delta: BlockDelta) -> None:
        if delta.cleared:
            self.clear()
        for content in delta.removed:
            self.remove(content)
        for content in delta.stored:
            self.store(content)

    def take(self) -> BlockDelta:
        """The net since the last time; empty when there is none."""
        delta = BlockDelta(self._cleared, tuple(self._removed), tuple(self._stored))
        self._cleared, self._removed, self._stored = False, {}, {}
        return delta
