"""Waiting lines in closed form: requests that wait for one of several workers, and sequences that share an engine.

Approximations, but ones that grow with load and shrink with workers, as a planner needs. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request waits with `chance`; where it does, its wait is exponential with `rate` a second."""

    chance: float
    rate: float

    def longer_than(self, seconds: float) -> float:
        """The chance of a wait above `seconds`, given that there is one."""
        return 1.0 if seconds <= 0 else math.exp(-self.rate * seconds)


def waiting(workers: int, arrivals: float, services_s: Sequence[float]) -> Waiting | None:
    """For `arrivals` a second at random, each taking one of `services_s`, at `workers` that work alike. None: the line
    grows without end.

    M/G/k after Allen and Cunneen (A. O. Allen, "Probability, Statistics, and Queueing Theory", 2nd ed., 1990, section
    5.3): the chance of a wait is Erlang's C, and the wait is that of exponential services times (1 + c2) / 2, with c2
    the squared coefficient of variation of the services; the tail is taken as exponential.
    """
    mean = fmean(services_s)
    load = arrivals * mean
    if load >= workers:
        return None
    variation = fmean((each - mean) ** 2 for each in services_s) / (mean * mean)
    return Waiting(erlang_c(workers, load), 2.0 / (1.0 + variation) * (workers - load) / mean)


def erlang_c(workers: int, load: float) -> float:
    """The chance that all workers are busy, `load` of them on average; needs `load` < `workers`."""
    blocked = 1.0  # Erlang's B, by its recursion over the number of workers
    for count in range(1, workers + 1):
        blocked = load * blocked / (count + load * blocked)
    return workers * blocked / (workers - load * (1.0 - blocked))


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Sequences in one engine. `chances[n]`: that n run, the last entry with all cases where further ones wait;
    `wait_chance`: that a new one finds no place."""

    chances: tuple[float, ...]
    wait_chance: float

    @property
    def mean(self) -> float:
        return sum(count * chance for count, chance in enumerate(self.chances))

    def quantile(self, share: float) -> int:
        """The least number that is not exceeded in `share` of the time."""
        reached = accumulate(self.chances)
        return next((count for count, total in enumerate(reached) if total >= share), len(self.chances) - 1)


def occupancy(arrivals: float, tokens: float, steps_s: Sequence[float]) -> Occupancy | None:
    """For sequences that arrive at random, `arrivals` a second, and need `tokens` steps each on average, where a step
    of n sequences takes `steps_s[n - 1]` seconds and no more than `len(steps_s)` run at once. None: more and more wait.

    Sequences share the engine, whose speed depends on their number alone: a symmetric queue, in which the chance of n
    is proportional to the product of arrivals * tokens * steps_s[j - 1] / j for j up to n, whatever the distribution of
    their lengths (F. P. Kelly, "Reversibility and Stochastic Networks", 1979, section 3.3). Those beyond the places are
    taken to wait in a line served at the speed of a full engine.
    """
    work = arrivals * tokens
    ratios = [work * step / count for count, step in enumerate(steps_s, 1)]
    if ratios[-1] >= 1.0:
        return None
    logs = list(accumulate((math.log(ratio) if ratio else -math.inf for ratio in ratios), initial=0.0))
    peak = max(logs)
    weights = [math.exp(log - peak) for log in logs]
    weights[-1] /= 1.0 - ratios[-1]  # with all cases in which others wait
    total = sum(weights)
    return Occupancy(tuple(weight / total for weight in weights), weights[-1] / total)


def percentile(longer_than: Callable[[float], float], share: float, most: float = 1e5) -> float:
    """The least time that is exceeded in no more than 1 - `share` of the cases; `longer_than` falls with time."""
    allowed = 1.0 - share
    low, high = 0.0, 1e-3
    while longer_than(high) > allowed and high < most:
        low, high = high, high * 2.0
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if longer_than(middle) > allowed else (low, middle)
    return high
