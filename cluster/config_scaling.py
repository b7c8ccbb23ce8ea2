"""How pools change their size: the bounds of one pool, and section `autoscaling`, the rule for both.

Only values and their checks; `cluster/scaling/` gives them their meaning.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from cluster.config_section import Count, Seconds, Section

_Positive = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(ge=0)]
_UsefulShare = Annotated[float, Field(gt=0, le=1)]


class PoolBounds(Section):
    """The pool scales by itself between these. With `min_replicas` 0 it ends when nobody asks, and begins again with
    the next request, which waits meanwhile. `cost`: of one replica, in the units of `autoscaling.budget`; None: its
    GPUs, and 1 for a replica without."""

    min_replicas: _Size = 1
    max_replicas: Count = 1
    cost: _Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class ForecastConfig(Section):
    """Demand is smoothed over `level_s`, its growth over `trend_s`; what counts is the demand `horizon_s` from now."""

    level_s: Seconds = 4.0
    trend_s: Seconds = 12.0
    horizon_s: Annotated[float, Field(ge=0)] = 8.0


class PaceConfig(Section):
    """How fast a pool may change. Up: by at most `step_up`, once the need has lasted for `up_after_s` and the last
    growth is `up_cooldown_s` ago; a need of `burst_factor` times what there is waits for neither. Down: by at most
    `step_down`, once the need, with a margin of `hysteresis`, has been lower for all of `down_after_s` and the last
    change is `down_cooldown_s` ago. To zero: after `idle_s` without any demand."""

    step_up: Count = 4
    step_down: Count = 1
    up_after_s: Annotated[float, Field(ge=0)] = 2.0
    up_cooldown_s: Annotated[float, Field(ge=0)] = 5.0
    burst_factor: Annotated[float, Field(ge=1)] = 2.0
    down_after_s: Seconds = 60.0
    down_cooldown_s: Annotated[float, Field(ge=0)] = 30.0
    hysteresis: Annotated[float, Field(ge=0, le=1)] = 0.15
    idle_s: Seconds = 300.0


class AutoscalingConfig(Section):
    """Prefill is sized so that prompts wait for less than `ttft_target_s` and its workers compute for `utilisation` of
    the time; decode so that tokens come every `itl_target_s` and `kv_share` of its KV blocks are in use.

    `budget` is a hard limit for both pools together, in units of their replicas' cost. There are at least `ratio_least`
    and at most `ratio_most` prefill workers for each decode worker, as far as bounds and budget allow. A router that
    has not reported for `stale_s` is not known.
    """

    ttft_target_s: Seconds = 1.0
    itl_target_s: Seconds = 0.05
    utilisation: _UsefulShare = 0.7
    kv_share: _UsefulShare = 0.8
    budget: _Positive | None = None
    ratio_least: _Positive | None = None
    ratio_most: _Positive | None = None
    period_s: Seconds = 1.0
    stale_s: Seconds = 5.0
    forecast: ForecastConfig = ForecastConfig()
    pace: PaceConfig = PaceConfig()

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.ratio_least is not None and self.ratio_most is not None and self.ratio_least > self.ratio_most:
            raise ValueError(f"ratio_least {self.ratio_least:g} is above ratio_most {self.ratio_most:g}")
        if self.stale_s <= self.period_s:
            raise ValueError(f"stale_s {self.stale_s:g} is not above period_s {self.period_s:g}: every report is stale")
        return self
