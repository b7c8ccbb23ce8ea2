"""Which order to drain a worker follows: an operator's, which can be undone, or its owner's, which cannot. Pure state.

An order is named, because every router passes it on: it counts once, however often and however late it is said.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """`deadline`: clock time at which what is still open moves to other workers."""

    drain_id: str
    deadline: float
    reason: str


class DrainOrders:
    """`current` is the one that holds; None: the worker takes work."""

    def __init__(self) -> None:
        self._current: DrainOrder | None = None
        self._heard: set[str] = set()
        self._final = False

    @property
    def current(self) -> DrainOrder | None:
        return self._current

    def give(self, order: DrainOrder) -> bool:
        """A new order takes the place of another one. False: it was heard before, was undone, or comes too late."""
        if self._final or order.drain_id in self._heard:
            return False
        self._heard.add(order.drain_id)
        self._current = order
        return True

    def undo(self, drain_id: str) -> bool:
        """Whether the worker takes work again by this. An order that comes after its undoing does not count. No id
        undoes whatever order holds."""
        self._heard.add(drain_id)
        if self._final or self._current is None or drain_id not in ("", self._current.drain_id):
            return False
        self._current = None
        return True

    def stop(self, deadline: float, reason: str) -> None:
        """The owner's order. An earlier deadline stays; nothing undoes it."""
        if self._current is not None:
            deadline = min(deadline, self._current.deadline)
        self._current = DrainOrder("", deadline, reason)
        self._final = True

    def close(self) -> None:
        """It is too late for anything else."""
        self._final = True
