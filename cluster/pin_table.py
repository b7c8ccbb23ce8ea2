"""Which worker each session used last, as one router knows it: bounded in number and in age.

Pure; the time is an argument, in seconds of one clock. It must not know how pins get from router to router.
"""

from __future__ import annotations

from collections import OrderedDict

_TELL_AGAIN = 0.25  # of a pin's life: so often it is said anew, so that it does not end while it is in use


class PinTable:
    def __init__(self, keep_s: float, most: int) -> None:
        self._keep_s = keep_s
        self._most = most
        self._pins: OrderedDict[str, tuple[str, float]] = OrderedDict()  # the least recently used first
        self._told: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def put(self, session_id: str, worker_id: str, now: float) -> bool:
        """Notes this router's own choice; says whether other routers should hear of it."""
        known = self.get(session_id, now)
        self._set(session_id, worker_id, now)
        told = self._told.get(session_id, float("-inf"))
        news = known != worker_id or now - told >= self._keep_s * _TELL_AGAIN
        if news:
            self._told[session_id] = now
        return news

    def hear(self, session_id: str, worker_id: str, at: float) -> None:
        """Another router's choice, made at `at`; a newer one of our own stands."""
        known = self._pins.get(session_id)
        if known is None or known[1] < at:
            self._set(session_id, worker_id, at)

    def get(self, session_id: str, now: float) -> str | None:
        pin = self._pins.get(session_id)
        return pin[0] if pin is not None and now - pin[1] < self._keep_s else None

    def newest(self, limit: int) -> list[tuple[str, str]]:
        """Session and worker, oldest first."""
        recent = [(session_id, pin[0]) for session_id, pin in self._pins.items()]
        return recent[-limit:]

    def _set(self, session_id: str, worker_id: str, at: float) -> None:
        self._pins[session_id] = (worker_id, at)
        self._pins.move_to_end(session_id)
        while len(self._pins) > self._most or at - next(iter(self._pins.values()))[1] >= self._keep_s:
            gone, _ = self._pins.popitem(last=False)
            self._told.pop(gone, None)
