"""An engine's blocks under our hashes: follows what the engine stores and removes under names of its own.

Pure state. It knows chains of tokens and the engine's names for their blocks; not how the engine tells of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.block_changes import BlockChanges
from cluster.block_hashes import extend_chain


class EngineBlocks:
    """`num_blocks`: the engine's whole pool, which bounds the memory. `changes`: under our hashes, to be taken."""

    def __init__(self, num_blocks: int) -> None:
        self.changes = BlockChanges()
        self.orphans = 0
        self._num_blocks = num_blocks
        self._ours: dict[int, int] = {}  # the engine's name -> our hash
        self._further: dict[int, int] = {}  # the engine's name -> copies of the block beyond the first
        self._copies = 0

    def __len__(self) -> int:
        return len(self._ours)

    def stored(self, seed: int, parent: int | None, names: Sequence[int], tokens: Sequence[int]) -> None:
        """Full blocks that follow one another, `tokens` being those of all of them; `parent` names the block before
        the first, None at the start of a prompt, where the chain begins with `seed`. Blocks after an unknown parent
        are left out and counted as `orphans`: the router would never look for them."""
        before = seed if parent is None else self._ours.get(parent)
        if before is None:
            self.orphans += len(names)
            return
        for name, ours in zip(names, extend_chain(before, tokens, len(tokens) // len(names)), strict=True):
            self._store(name, ours)
        if self._copies > self._num_blocks:
            self.clear()  # removals went missing: what is known cannot be right

    def removed(self, names: Sequence[int]) -> None:
        for name in names:
            if name in self._further:
                self._lose_copy(name)
            elif (ours := self._ours.pop(name, None)) is not None:
                self._copies -= 1
                self.changes.remove(ours)

    def clear(self) -> None:
        """The engine holds nothing, or it is no longer known what."""
        self._ours.clear()
        self._further.clear()
        self._copies = 0
        self.changes.clear()

    def _store(self, name: int, ours: int) -> None:
        self._copies += 1
        if name in self._ours:
            # Two requests computed the same prompt at once: the prefix is there until both blocks are given away.
            self._further[name] = self._further.get(name, 0) + 1
        else:
            self._ours[name] = ours
            self.changes.store(ours)

    def _lose_copy(self, name: int) -> None:
        self._copies -= 1
        self._further[name] -= 1
        if not self._further[name]:
            del self._further[name]
