"""What is asked of a cluster: how often, how long prompts and outputs are, and how much of a prompt is cached.

Lengths are kept as equally likely values, so that every distribution is handled alike. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean

from cluster.errors import ConfigError

_POINTS = 64
_P95 = 1.6448536269514722  # of the standard normal distribution


@dataclass(frozen=True, slots=True)
class Workload:
    """`rate`: requests a second, arriving at random (Poisson). `prompts`, `outputs`: equally likely lengths in tokens,
    ascending. `hit_share`: of each prompt, what is in the cache of the worker that computes it.

    `context`, `context_spread`: mean and standard deviation of the tokens that a sequence has in the cache at a random
    moment of its decoding. `longest`: tokens of the longest request. `assumed`: what was not said and is assumed.
    """

    rate: float
    prompts: tuple[float, ...]
    outputs: tuple[float, ...]
    context: float
    context_spread: float
    longest: float
    hit_share: float = 0.0
    assumed: tuple[str, ...] = ()

    @property
    def mean_prompt(self) -> float:
        return fmean(self.prompts)

    @property
    def mean_output(self) -> float:
        return fmean(self.outputs)

    @property
    def later_tokens(self) -> float:
        """Output tokens of a request after its first."""
        return max(self.mean_output - 1.0, 0.0)

    def computed(self, prompt: float) -> float:
        """Tokens of a prompt that are not in a cache; at least the last one."""
        return max(prompt * (1.0 - self.hit_share), 1.0)


def spread_lengths(mean: float, p95: float) -> tuple[float, ...]:
    """Equally likely lengths with this mean, log-normal with about this 95th percentile; all equal where both are. None
    is below one token, and so the mean is not either.

    Raises `ConfigError` where no such distribution is: a 95th percentile below the mean, or above 3.86 times it.
    """
    most = math.exp(_P95 * _P95 / 2.0)
    if not mean <= p95 <= most * mean:
        raise ConfigError(
            f"lengths with a mean of {mean:g} tokens: their 95th percentile cannot be {p95:g}, but from {mean:g} to"
            f" {most * mean:.0f}"
        )
    if mean <= 1.0:
        return (1.0,) * _POINTS
    # ln(p95 / mean) = _P95 sigma - sigma^2 / 2; of the two solutions, the lesser spread.
    sigma = _P95 - math.sqrt(max(_P95 * _P95 - 2.0 * math.log(p95 / mean), 0.0))
    normal = NormalDist()
    raw = [math.exp(sigma * normal.inv_cdf((at + 0.5) / _POINTS)) for at in range(_POINTS)]
    scale = mean / fmean(raw)
    above_one = [max(scale * each - 1.0, 0.0) for each in raw]
    # What was raised to one token has raised the mean: what lies above it is lowered by as much.
    scale = (mean - 1.0) / fmean(above_one)
    return tuple(1.0 + scale * each for each in above_one)


def likely_values(values: Iterable[float]) -> tuple[float, ...]:
    """At most `_POINTS` equally likely values with the same mean: each stands for as many of `values` in order."""
    ordered = sorted(values)
    if len(ordered) <= _POINTS:
        return tuple(ordered)
    bounds = [len(ordered) * at // _POINTS for at in range(_POINTS + 1)]
    return tuple(fmean(ordered[first:last]) for first, last in pairwise(bounds))


def drawn_workload(
    rate: float, prompts: Sequence[float], outputs: Sequence[float], hit_share: float, assumed: tuple[str, ...]
) -> Workload:
    """Prompts and outputs of given lengths that do not depend on each other."""
    pairs = [(prompt, output) for prompt in prompts for output in outputs]
    context, spread = resident(pairs)
    longest = max(prompts) + max(outputs)
    return Workload(rate, tuple(prompts), tuple(outputs), context, spread, longest, hit_share, assumed)


def resident(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of the tokens of a sequence at a random moment of its decoding, for requests of
    (prompt, output) tokens: one with twice the output is met twice as often."""
    total = sum(output for _, output in pairs)
    mean = sum(output * (prompt + output / 2.0) for prompt, output in pairs) / total
    square = sum(output * (prompt**2 + prompt * output + output**2 / 3.0) for prompt, output in pairs) / total
    return mean, math.sqrt(max(square - mean * mean, 0.0))
