"""Which workers last served a session, one of each pool: remembered for so many sessions and for so long, no more.

What a pin is worth is decided in `predicted_placement`; how pins get from router to router is the store's business.
"""

from __future__ import annotations

from typing import Protocol

from cluster.engine import Role
from cluster.pin_table import PinTable


class Pins(Protocol):
    """Answers at once, from memory. `now`: seconds of the clock that placement uses."""

    def get(self, session: str, role: Role, now: float) -> str | None: ...

    def pin(self, session: str, role: Role, worker_id: str, now: float) -> None:
        """Renews or moves the session's pin."""
        ...


class SessionPins:
    """This router's own. At most `most` pins; one that was not renewed for `pin_s` is gone."""

    def __init__(self, most: int, pin_s: float) -> None:
        self._table = PinTable(pin_s, most)

    def __len__(self) -> int:
        return len(self._table)

    def get(self, session: str, role: Role, now: float) -> str | None:
        return self._table.get(_key(session, role), now)

    def pin(self, session: str, role: Role, worker_id: str, now: float) -> None:
        self._table.put(_key(session, role), worker_id, now)


class Telling(Protocol):
    """Where routers tell each other of pins, by a key of their own; see `cluster.store_mirror`."""

    def pin(self, session_id: str, worker_id: str) -> None: ...

    def pinned(self, session_id: str) -> str | None: ...


class SharedPins:
    """Pins of all routers. They last as long as the store keeps them, by its clock."""

    def __init__(self, told: Telling) -> None:
        self._told = told

    def get(self, session: str, role: Role, now: float) -> str | None:
        return self._told.pinned(_key(session, role))

    def pin(self, session: str, role: Role, worker_id: str, now: float) -> None:
        self._told.pin(_key(session, role), worker_id)


def _key(session: str, role: Role) -> str:
    return f"{role.value} {session}"
