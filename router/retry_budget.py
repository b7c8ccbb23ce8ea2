"""How many retries a router makes, and how long each waits: so that errors do not turn into a storm. Pure: the time is
an argument, chance comes from a seed.

Only what a worker answered with an error, or too late, is paid for: a request that moves off a worker that is gone adds
no work that was not there before.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

WINDOW_S = 10
"""Over so many seconds requests and retries are counted."""
FIRST_WAIT_S, MOST_WAIT_S = 0.05, 1.0


@dataclass(slots=True)
class _Slot:
    second: int
    requests: int = 0
    retries: int = 0


class RetryBudget:
    """At most `share` of the requests of the last `WINDOW_S` seconds may be retries, and `floor_per_s` a second
    whatever they are."""

    def __init__(self, share: float, floor_per_s: float, seed: int) -> None:
        self._share = share
        self._floor = floor_per_s * WINDOW_S
        self._draw = random.Random(seed)
        self._slots: deque[_Slot] = deque()
        self._requests = self._retries = 0
        self.refused = 0

    def came(self, now: float) -> None:
        """A request was begun."""
        self._slot(now).requests += 1
        self._requests += 1

    def take(self, errors: int, now: float) -> float | None:
        """Seconds to wait before the retry after so many errors of one request, at least 1; None: there is none."""
        slot = self._slot(now)
        if self._retries + 1 > self._floor + self._share * self._requests:
            self.refused += 1
            return None
        slot.retries += 1
        self._retries += 1
        return self._draw.uniform(0.5, 1.5) * min(FIRST_WAIT_S * 2.0 ** min(errors - 1, 16), MOST_WAIT_S)

    def _slot(self, now: float) -> _Slot:
        second = int(now // 1)
        while self._slots and self._slots[0].second <= second - WINDOW_S:
            old = self._slots.popleft()
            self._requests -= old.requests
            self._retries -= old.retries
        if not self._slots or self._slots[-1].second < second:
            self._slots.append(_Slot(second))
        return self._slots[-1]
