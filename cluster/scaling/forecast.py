"""Where a measured amount is going: Holt's linear trend, for measurements at any distance. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.config_scaling import ForecastConfig

_MOST_GROWTH = 1.5
"""A forecast is at most so many times what has been seen: a jump looks like a slope that never ends."""


@dataclass(frozen=True, slots=True)
class Trend:
    """`level` in the unit of what is measured, `slope` a second; `at` is clock time. None: nothing measured yet."""

    level: float = 0.0
    slope: float = 0.0
    at: float | None = None

    def measured(self, value: float, now: float, config: ForecastConfig) -> Trend:
        """After one more measurement, finite and not negative. One at the same time as the last replaces nothing."""
        if self.at is None:
            return Trend(value, 0.0, now)
        passed = now - self.at
        if passed <= 0:
            return self
        expected = self.level + self.slope * passed
        level = max(0.0, expected + _weight(passed, config.level_s) * (value - expected))
        slope = self.slope + _weight(passed, config.trend_s) * ((level - self.level) / passed - self.slope)
        return Trend(level, slope, now)

    def ahead(self, horizon_s: float, seen: float) -> float:
        """What is expected after so long, if it has just been `seen`; never below the level of now."""
        ahead = self.level + max(0.0, self.slope) * horizon_s
        return max(self.level, min(ahead, _MOST_GROWTH * max(self.level, seen)))


def _weight(passed_s: float, memory_s: float) -> float:
    return 1.0 - math.exp(-passed_s / memory_s)
