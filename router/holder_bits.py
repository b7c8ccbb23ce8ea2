"""Which bit of the masks stands for whom: given out, retired at once, used again when no mask has it any more.

A worker has a bit for what it says it holds, and for what it is expected to hold one or two more that come and go. It
must not know blocks.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FEW = 4


@dataclass(slots=True)
class Holder:
    """`bit` marks what the worker says it holds, `guess` what it was sent lately, `faded` what it was sent before.

    `held` counts the blocks of `bit`.
    """

    row: int
    most_blocks: int
    bit: int = 0
    guess: int = 0
    faded: int = 0
    held: int = 0

    @property
    def bits(self) -> int:
        return self.bit | self.guess | self.faded


class HolderBits:
    """`live`: all bits that count; `firm`: those of them that are no guesses; `retired`: those that masks may still
    have, but that mean nothing."""

    def __init__(self) -> None:
        self.live = 0
        self.firm = 0
        self.retired = 0
        self._holders: dict[int, Holder] = {}  # by the position of the bit
        self._rows = np.zeros(64, np.intp)
        self.fill: npt.NDArray[np.float64] = np.zeros(64)  # by row: held of what it can hold
        self._made = 0
        self._free: list[int] = []

    def give(self, holder: Holder, firm: bool) -> int:
        """A new bit, as low as possible: masks stay short."""
        if self._free:
            position = heapq.heappop(self._free)
        else:
            position, self._made = self._made, self._made + 1
        if position == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[position] = holder.row
        self._holders[position] = holder
        bit = 1 << position
        if firm:
            self._begin_anew(holder.row)
        self.live |= bit
        self.firm |= bit if firm else 0
        return bit

    def retire(self, bits: int) -> None:
        self.live &= ~bits
        self.firm &= ~bits
        self.retired |= bits
        for position in positions(bits):
            del self._holders[position]

    def free(self, bits: int) -> None:
        """No mask has these retired bits any more."""
        self.retired &= ~bits
        for position in positions(bits):
            heapq.heappush(self._free, position)

    def rows(self, bits: int) -> npt.NDArray[np.intp] | list[int]:
        """The rows of the holders of these live bits."""
        if bits.bit_count() <= _FEW:
            return [self._holders[position].row for position in positions(bits)]
        flags = np.frombuffer(bits.to_bytes(-(-self._made // 8), "little"), np.uint8)
        return self._rows[np.flatnonzero(np.unpackbits(flags, bitorder="little"))]

    def count(self, bits: int, blocks: int) -> None:
        """So many more blocks, or less where negative, are held by the holders of these firm bits."""
        for position in positions(bits):
            holder = self._holders[position]
            holder.held += blocks
            self.fill[holder.row] = holder.held / holder.most_blocks

    def _begin_anew(self, row: int) -> None:
        if row >= len(self.fill):
            self.fill = np.concatenate([self.fill, np.zeros(max(len(self.fill), row + 1 - len(self.fill)))])
        self.fill[row] = 0.0


def positions(bits: int) -> list[int]:
    found = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return found
