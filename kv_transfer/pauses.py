"""How long to wait before something is tried again. Pure."""

from __future__ import annotations

FIRST_S, LONGEST_S = 0.02, 0.5


class Pauses:
    """Of one read: twice as long each time."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def take(self) -> float:
        """Seconds."""
        pause_s = self._next_s
        self._next_s = min(2 * self._next_s, LONGEST_S)
        return pause_s

    def begin_anew(self) -> None:
        """It got on."""
        self._next_s = FIRST_S
