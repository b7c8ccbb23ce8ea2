"""Which workers last served a session: remembered for so many sessions and for so long, no more.

Pure state. What a pin is worth is decided in `predicted_placement`.
"""

from __future__ import annotations

from collections import OrderedDict

from cluster.engine import Role

_Key = tuple[str, Role]


class SessionPins:
    """At most `most` pins; one that was not renewed for `pin_s` is gone."""

    def __init__(self, most: int, pin_s: float) -> None:
        self._most = most
        self._pin_s = pin_s
        self._pins: OrderedDict[_Key, tuple[str, float]] = OrderedDict()  # in order of their last renewal

    def __len__(self) -> int:
        return len(self._pins)

    def get(self, session: str, role: Role, now: float) -> str | None:
        worker_id, renewed = self._pins.get((session, role), (None, 0.0))
        return worker_id if now - renewed < self._pin_s else None

    def pin(self, session: str, role: Role, worker_id: str, now: float) -> None:
        """Renews or moves the session's pin."""
        self._pins[session, role] = (worker_id, now)
        self._pins.move_to_end((session, role))
        while len(self._pins) > self._most or now - next(iter(self._pins.values()))[1] >= self._pin_s:
            self._pins.popitem(last=False)
