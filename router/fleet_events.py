"""What this router saw of its fleet, for the operator: a ring of the last events, each with its time and reason.

Written on the event loop by whoever sees something; nothing is decided by it.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from cluster.engine import Role
from router.seen import Seen

_MOST = 512
_ROLES = 1_024
_TEXT = 500  # characters of a reason


@dataclass(slots=True)
class FleetEvent:
    """`times`: of equal events in a row only the first is kept, and counted."""

    number: int
    at_unix_s: float
    kind: Seen
    worker_id: str
    role: Role | None
    reason: str
    request_id: str = ""
    times: int = 1

    def repeats(self, kind: Seen, worker_id: str, reason: str) -> bool:
        return (self.kind, self.worker_id, self.reason) == (kind, worker_id, reason)


class FleetEvents:
    """`wall`: seconds since 1970. `most`: events that are kept; the oldest leave first."""

    def __init__(self, wall: Callable[[], float] = time.time, most: int = _MOST) -> None:
        self._wall = wall
        self._events: deque[FleetEvent] = deque(maxlen=most)
        self._numbers = itertools.count(1)
        self._roles: OrderedDict[str, Role] = OrderedDict()

    def joined(self, worker_id: str, role: Role, reason: str) -> None:
        """From now on its events carry its role."""
        self._roles[worker_id] = role
        if len(self._roles) > _ROLES:
            self._roles.popitem(last=False)
        self.add(Seen.JOINED, worker_id, reason)

    def add(self, kind: Seen, worker_id: str, reason: str = "", request_id: str = "") -> None:
        reason = reason[:_TEXT]
        if self._events and self._events[-1].repeats(kind, worker_id, reason):
            # When a worker is lost with a thousand requests, what came before must not leave the ring for it.
            self._events[-1].times += 1
            return
        role = self._roles.get(worker_id)
        self._events.append(FleetEvent(next(self._numbers), self._wall(), kind, worker_id, role, reason, request_id))

    def since(self, number: int = 0, limit: int = 0) -> list[FleetEvent]:
        """Those behind that number, oldest first; of them the newest `limit`, with 0 all."""
        found = [event for event in self._events if event.number > number]
        return found[-limit:] if limit else found
