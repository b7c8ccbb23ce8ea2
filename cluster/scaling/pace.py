"""When a pool follows its need: not for a moment's sake, not twice in a row, not by too much, and down later than up.

Pure: one step of the size of one pool, and what to remember for the next. It must not know what the need is made of,
nor the bounds, the budget or the other pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cluster.config_scaling import PaceConfig

_ROUNDING = 1e-9  # needs that add up to a whole number of workers must not cost one more for their last bit


@dataclass(frozen=True, slots=True)
class Pace:
    """Clock times. `over_since`: the need has been above the size; `under_since`: with its margin below it, and at most
    `under_most` workers. None: it is not."""

    changed_at: float = -math.inf
    grown_at: float = -math.inf
    over_since: float | None = None
    under_since: float | None = None
    under_most: int = 0

    def changed(self, before: int, after: int, now: float) -> Pace:
        """The size has just changed, whatever the reason. Who has come down to the most that was needed begins to count
        anew: it may be less by now."""
        return replace(
            self,
            changed_at=now,
            grown_at=now if after > before else self.grown_at,
            over_since=None,
            under_since=self.under_since if self.under_most < after else None,
        )

    @property
    def interrupted(self) -> Pace:
        """The need has not been seen: how long it was above or below the size begins to count anew."""
        return replace(self, over_since=None, under_since=None)


@dataclass(frozen=True, slots=True)
class Step:
    """The size to have from now on, and why it is not the one that is needed, or is."""

    size: int
    because: str


def whole(workers: float) -> int:
    return math.ceil(workers - _ROUNDING)


def paced(size: int, need: float, pace: Pace, config: PaceConfig, now: float) -> tuple[Step, Pace]:
    """`need`: finite, workers. Never below one; going to zero is not a matter of load."""
    wanted, roomy = max(1, whole(need)), max(1, whole(need * (1 + config.hysteresis)))
    if wanted > size:
        return _up(size, wanted, need, replace(pace, under_since=None), config, now)
    pace = replace(pace, over_since=None)
    if roomy >= size:
        return Step(size, f"{need:.2f} needed: {size} fit"), replace(pace, under_since=None)
    since = now if pace.under_since is None else pace.under_since
    most = roomy if pace.under_since is None else max(roomy, pace.under_most)
    return _down(size, replace(pace, under_since=since, under_most=most), config, now)


def _up(size: int, wanted: int, need: float, pace: Pace, config: PaceConfig, now: float) -> tuple[Step, Pace]:
    since = now if pace.over_since is None else pace.over_since
    pace = replace(pace, over_since=since)
    grown = min(wanted, size + config.step_up)
    limited = f", at most {config.step_up} at once" if grown < wanted else ""
    if size and need >= config.burst_factor * size:
        return Step(grown, f"{need:.2f} needed, a burst: {wanted} wanted at once{limited}"), pace
    if now - since < config.up_after_s:
        return Step(size, f"{wanted} needed, but only since {now - since:.0f} s of {config.up_after_s:g}"), pace
    if now - pace.grown_at < config.up_cooldown_s:
        ago = now - pace.grown_at
        return Step(size, f"{wanted} needed, but it grew {ago:.0f} s ago: not within {config.up_cooldown_s:g}"), pace
    return Step(grown, f"{need:.2f} needed: {wanted} wanted{limited}"), pace


def _down(size: int, pace: Pace, config: PaceConfig, now: float) -> tuple[Step, Pace]:
    assert pace.under_since is not None
    lasted, ago, enough = now - pace.under_since, now - pace.changed_at, pace.under_most
    if lasted < config.down_after_s:
        return Step(size, f"{enough} would be enough since {lasted:.0f} s: not before {config.down_after_s:g}"), pace
    if ago < config.down_cooldown_s:
        return Step(
            size, f"{enough} are enough, but it changed {ago:.0f} s ago: not in {config.down_cooldown_s:g}"
        ), pace
    smaller = max(enough, size - config.step_down)
    return Step(smaller, f"no more than {enough} were needed for {lasted:.0f} s"), pace
