"""The block pool of a simulated engine: who holds which block, and which free blocks still hold a known prefix.

Pure state. A free block keeps its content until it is given away; the block that has been free longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from cluster.block_changes import BlockChanges


class BlockPool:
    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._fresh = 0  # blocks from here on were never used
        self._holders: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()  # longest free first
        self._content: dict[int, int] = {}
        self._where: dict[int, int] = {}
        self.changes = BlockChanges()

    @property
    def contents(self) -> frozenset[int]:
        """The hashes of all known prefixes. A copy: for inspection."""
        return frozenset(self._where)

    @property
    def used(self) -> int:
        return len(self._holders)

    @property
    def available(self) -> int:
        return self._num_blocks - len(self._holders)

    @property
    def usage(self) -> float:
        return self.used / self._num_blocks

    def find(self, hashes: Iterable[int]) -> list[int]:
        """The blocks of the longest known prefix. They are not held yet: `hold` them before the next `allocate`."""
        found = []
        for wanted in hashes:
            block = self._where.get(wanted)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody holds: holding them takes that many away from `available`."""
        return sum(block not in self._holders for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._holders[block] = self._holders.get(block, 0) + 1
            self._free.pop(block, None)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks, at most `available`; what they held is forgotten."""
        return [self._take_one() for _ in range(count)]

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block. The end of a prefix becomes free before its start."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._free[block] = None

    def remember(self, block: int, content: int) -> None:
        """The block now holds the prefix with this hash, for as long as it is not given away. Of several blocks with
        equal content the first is found."""
        if content not in self._where and block not in self._content:
            self._where[content] = block
            self._content[block] = content
            self.changes.store(content)

    def forget(self) -> bool:
        """No block holds a known prefix any more. False, and nothing changes, while someone holds a block."""
        if self._holders:
            return False
        self._content.clear()
        self._where.clear()
        self.changes.clear()
        return True

    def check_integrity(self) -> None:
        """Recounts from a second source; raises `AssertionError` on a difference."""
        assert not self._holders.keys() & self._free.keys(), "a block is both held and free"
        assert len(self._holders) + len(self._free) == self._fresh, "a used block is neither held nor free"
        assert all(count > 0 for count in self._holders.values()), "a held block has no holder"
        assert self._where == {content: block for block, content in self._content.items()}, "the index is out of step"

    def _take_one(self) -> int:
        if self._fresh < self._num_blocks:
            block, self._fresh = self._fresh, self._fresh + 1
        else:
            block, _ = self._free.popitem(last=False)
        content = self._content.pop(block, None)
        if content is not None:
            del self._where[content]
            self.changes.remove(content)
        self._holders[block] = 1
        return block
