"""What an operator orders of a worker: to be drained, or to take work again. Kept as a mark in the store, from which
every router passes it on.

It must not know what a drain does to a worker, nor how an operator asks.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping

from cluster.config import Config
from cluster.engine import Role
from cluster.errors import InvalidRequest, UnknownWorker
from cluster.nearest import nearest_names
from cluster.store import DrainMark
from cluster.store_mirror import StoreMirror
from router.fleet import Fleet


def drain_seconds(config: Config) -> Mapping[Role, float]:
    """How long a worker of each pool may take to finish, where nobody says otherwise."""
    return {role: config.pool(role).drain_s for role in Role}


class Drains:
    """`usual_s`: deadline of an order that names none, by role. `wall`: seconds since 1970."""

    def __init__(
        self, fleet: Fleet, mirror: StoreMirror, usual_s: Mapping[Role, float], wall: Callable[[], float] = time.time
    ) -> None:
        self._fleet = fleet
        self._mirror = mirror
        self._usual_s = usual_s
        self._wall = wall

    @property
    def marks(self) -> Mapping[str, DrainMark]:
        return self._mirror.marks

    async def order(self, worker_id: str, reason: str, deadline_s: float | None) -> float:
        """Returns the deadline, seconds. Raises `UnknownWorker`, `InvalidRequest`, `StoreUnavailable`."""
        role = self._fleet.role_of(worker_id)
        if role is None:
            raise self._unknown(worker_id)
        if deadline_s is None:
            deadline_s = self._usual_s[role]
        if not (math.isfinite(deadline_s) and deadline_s >= 0):
            raise InvalidRequest(f"a drain's deadline is seconds from now on, not {deadline_s:g}")
        await self._forget_the_gone()
        await self._mirror.mark(DrainMark(worker_id, reason, secrets.token_hex(8), self._wall() + deadline_s))
        self._fleet.hear_of_drains()
        return deadline_s

    async def undo(self, worker_id: str) -> None:
        """Raises `UnknownWorker`, `StoreUnavailable`."""
        if self._fleet.role_of(worker_id) is None and worker_id not in self.marks:
            raise self._unknown(worker_id)
        await self._mirror.unmark(worker_id)
        self._fleet.hear_of_drains()
        self._fleet.end_drain(worker_id)  # also where the mark was lost

    def _unknown(self, worker_id: str) -> UnknownWorker:
        return UnknownWorker(nearest_names("worker", worker_id, self._fleet.worker_ids))

    async def _forget_the_gone(self) -> None:
        """Marks of workers that were drained in the past: nothing else takes them out of the store."""
        now = self._wall()
        for worker_id, mark in list(self.marks.items()):
            if mark.deadline_unix_s < now and self._fleet.role_of(worker_id) is None:
                await self._mirror.unmark(worker_id)
