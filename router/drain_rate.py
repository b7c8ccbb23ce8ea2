"""How fast the queue drains, in tokens a second: measured while something waits, with forgetting.

Before anything has been measured a configured rate stands in, with the weight of two seconds.
"""

from __future__ import annotations

import math

_PRIOR_S = 2.0


class DrainRate:
    """`memory_s`: after this many seconds of waiting a measurement counts a third."""

    def __init__(self, cold_tokens_per_s: float, memory_s: float = 30.0) -> None:
        self._tokens = cold_tokens_per_s * _PRIOR_S
        self._seconds = _PRIOR_S
        self._memory_s = memory_s

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / self._seconds

    def drained(self, tokens: int) -> None:
        self._tokens += tokens

    def waited(self, seconds: float) -> None:
        """So long has the queue not been empty, since the last call."""
        kept = math.exp(-seconds / self._memory_s)
        # Never quite nothing: a queue that stands still for hours must not divide by zero.
        self._tokens = max(1.0, self._tokens * kept)
        self._seconds = self._seconds * kept + seconds
