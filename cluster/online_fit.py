"""A cost in seconds as a sum of parts, learnt one measurement at a time: robust, forgetting, never absurd.

Recursive least squares on relative errors. An outlier pulls no harder than a usual error; a lasting change is followed,
because what is usual is measured too. Pure: the time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_USUAL_ERROR = 0.3  # relative, before anything is measured
_LEAST_ERROR = 0.01
_HUBER = 2.0  # errors beyond so many usual ones pull no harder
_ERROR_STEP = 0.05
_SHORTEST_MEMORY, _LONGEST_MEMORY = 0.5, 0.995  # what one measurement leaves of the weight of those before it
_BAD_ERROR, _BAD_MEMORY = 0.5, 0.98  # where predictions are usually so wrong, old measurements mislead
_FLOOR_S = 1e-5
_MOST_S = 1e5


class OnlineFit:
    """seconds = sum of coefficient * feature. `start` are the coefficients before any measurement, `doubt` by how much
    each may well be off; no coefficient leaves 0 .. start + 100 * doubt. What was measured `half_life_s` ago counts
    half. Features are finite and not negative."""

    def __init__(self, start: Sequence[float], doubt: Sequence[float], half_life_s: float) -> None:
        self.coefficients = list(start)
        self.ignored = 0
        self._doubt = tuple(doubt)
        self._most = [s + 100 * d for s, d in zip(start, doubt, strict=True)]
        self._half_life_s = half_life_s
        self._usual_error = _USUAL_ERROR
        self._last: float | None = None
        self._count = 0.0
        self._spread = self._first_spread()  # covariance of the coefficients, for measurements of unit error

    def predict(self, features: Sequence[float]) -> float:
        seconds: float = sum(c * f for c, f in zip(self.coefficients, features, strict=True))
        return seconds

    def evidence(self, now: float) -> float:
        """How many measurements of now it would take to know as much."""
        return 0.0 if self._last is None else self._count * math.exp2(-max(0.0, now - self._last) / self._half_life_s)

    def observe(self, features: Sequence[float], seconds: float, now: float) -> None:
        """What has no sense, like a duration below 0 or of a day, is counted in `ignored` and changes nothing."""
        if not 0 <= seconds <= _MOST_S or not all(0 <= feature < math.inf for feature in features):
            self.ignored += 1
            return
        # Relative to what is predicted, so that a long prompt does not shout down a hundred short ones.
        predicted = self.predict(features)
        scale = max(predicted, seconds / 10, _FLOOR_S)
        scaled = [feature / scale for feature in features]
        error = (seconds - predicted) / scale
        limit = _HUBER * self._usual_error
        weight = min(1.0, limit / abs(error)) if error else 1.0
        remembered = self._remembered(now)
        self._learn(scaled, error, weight, remembered)
        self._count = remembered * self._count + 1.0
        self._usual_error += _ERROR_STEP * (min(abs(error), 2 * limit) - self._usual_error)
        self._usual_error = max(self._usual_error, _LEAST_ERROR)

    def _remembered(self, now: float) -> float:
        passed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now if self._last is None else max(self._last, now)
        longest = _LONGEST_MEMORY if self._usual_error < _BAD_ERROR else _BAD_MEMORY
        return min(longest, max(_SHORTEST_MEMORY, math.exp2(-passed / self._half_life_s)))

    def _learn(self, features: Sequence[float], error: float, weight: float, remembered: float) -> None:
        spread, size = self._spread, range(len(features))
        reach = [sum(spread[i][j] * features[j] for j in size) for i in size]
        total = remembered / weight + sum(reach[i] * features[i] for i in size)
        moved = [self.coefficients[i] + reach[i] / total * error for i in size]
        learnt = [[(spread[i][j] - reach[i] * reach[j] / total) / remembered for j in size] for i in size]
        if not all(0.0 <= moved[i] <= self._most[i] for i in size):
            moved = self._within(moved, learnt)
        self.coefficients = moved
        self._spread = self._bounded(learnt)

    def _within(self, moved: list[float], spread: Sequence[Sequence[float]]) -> list[float]:
        """The coefficients, each in its range. What one may not take, those that were learnt with it make up for: where
        features rise together, news moves one coefficient up and another down, and if only what falls below 0 were cut
        off, the sum would grow too large, more so each time.

        `moved` and `spread` are mean and covariance of a Gaussian, which is conditioned on c[i] being its bound, one i
        after the other: c[j] += spread[j][i] / spread[i][i] * (bound - c[i]). C. M. Bishop, "Pattern Recognition and
        Machine Learning", 2006, equations 2.81 and 2.82; D. Simon, "Kalman filtering with state constraints", IET
        Control Theory and Applications 4(8), 2010, has it as the projection of an estimate onto its constraints.
        """
        size, free = range(len(moved)), list(range(len(moved)))
        while outside := [i for i in free if not 0.0 <= moved[i] <= self._most[i] and spread[i][i] > 0]:
            held = outside[0]
            free.remove(held)
            past = min(max(moved[held], 0.0), self._most[held]) - moved[held]
            share = [row[held] / spread[held][held] for row in spread]
            moved = [moved[j] + share[j] * past for j in size]
            spread = [[spread[j][k] - share[j] * spread[held][k] for k in size] for j in size]
        return [min(max(moved[i], 0.0), self._most[i]) for i in size]

    def _bounded(self, spread: list[list[float]]) -> list[list[float]]:
        """Forgetting without news would let doubt grow for ever; it stays within what it was at the start."""
        size = range(len(spread))
        if not all(0 < spread[i][i] < math.inf for i in size):
            return self._first_spread()
        # One product for both halves: what they differ by, however little, forgetting would let grow without end.
        shrink = [min(1.0, self._doubt[i] / _USUAL_ERROR / math.sqrt(spread[i][i])) for i in size]
        return [[spread[i][j] * (shrink[i] * shrink[j]) for j in size] for i in size]

    def _first_spread(self) -> list[list[float]]:
        size = range(len(self._doubt))
        return [[(self._doubt[i] / _USUAL_ERROR) ** 2 if i == j else 0.0 for j in size] for i in size]
