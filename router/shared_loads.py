"""What routers tell each other of the work that they have reserved on workers, as placement sees it."""

from __future__ import annotations

from typing import Protocol

from cluster.store import NOTHING, Reserved


class SharedLoads(Protocol):
    """Answers at once, from memory."""

    def reserve(self, worker_id: str, share: Reserved) -> None:
        """All that this router has on the worker now, in place of what it said before."""
        ...

    def reserved_elsewhere(self, worker_id: str) -> Reserved:
        """By all other routers."""
        ...


class Alone:
    """No other routers."""

    def reserve(self, worker_id: str, share: Reserved) -> None:
        """Nobody to tell."""

    def reserved_elsewhere(self, worker_id: str) -> Reserved:
        return NOTHING


ALONE = Alone()
