"""How long to wait before something is tried again. Pure: chance is an argument."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S, LONGEST_S = 0.02, 0.5


class Pauses:
    """Of one read: about twice as long each time. `draw`: evenly from 0 to 1; readers that were refused together do not
    come again together."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._next_s = FIRST_S

    def take(self) -> float:
        """Seconds."""
        pause_s = self._next_s * (0.5 + self._draw())
        self._next_s = min(2 * self._next_s, LONGEST_S)
        return pause_s

    def begin_anew(self) -> None:
        """It got on."""
        self._next_s = FIRST_S
