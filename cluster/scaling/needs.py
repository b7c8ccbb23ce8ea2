"""How many workers each rule wants, as a number that need not be whole, and why.

prefill   flow     prompt tokens expected a second, at the measured speed and the utilisation that leaves no queue
          queue    tokens that wait now, but for those that workers which start will work off, computed within what
                   the TTFT target leaves for waiting
decode    room     KV blocks in use, at the share that leaves room
          pace     sequences, as many to a worker as come in time

Pure. It must not know bounds, or how many workers there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.config_scaling import AutoscalingConfig

_LEAST_QUEUE_SHARE = 0.25
"""Of the TTFT target is left for waiting, however long a prompt takes: more workers do not make that faster."""
_LEAST_PACE_SHARE = 0.2
"""Of what a step takes alone is left for what sequences add to it, however near the ITL target it comes: fewer of them
to a worker would make it hardly faster."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one rule wants. NaN: an input of it is not known."""

    rule: str
    workers: float
    because: str


@dataclass(frozen=True, slots=True)
class PrefillDemand:
    """`tokens_per_s_ahead`: expected to arrive; `backlog_tokens`: not computed yet, wherever they are; `owed_tokens`:
    of those, left to workers that were ordered. `tokens_per_s`: of one worker; `prompt_tokens`: of a typical prompt."""

    tokens_per_s_ahead: float
    backlog_tokens: float
    owed_tokens: float
    tokens_per_s: float
    prompt_tokens: float


@dataclass(frozen=True, slots=True)
class DecodeDemand:
    """`growth`: by what factor more sequences are expected. `step_s`, `sequence_s`: as in `WorkerSight`."""

    sequences: float
    kv_used: float
    growth: float
    step_s: float
    sequence_s: float


def queue_seconds(demand: PrefillDemand, workers: int) -> float:
    """How long a prompt that comes now would wait, with at least one worker."""
    return demand.backlog_tokens / (demand.tokens_per_s * workers)


def prefill_needs(demand: PrefillDemand, config: AutoscalingConfig) -> tuple[Need, ...]:
    speed = demand.tokens_per_s
    flow = _share(demand.tokens_per_s_ahead, speed * config.utilisation)
    ahead = f"{demand.tokens_per_s_ahead:.0f} tokens/s expected, {speed:.0f} tokens/s each at {config.utilisation:.0%}"
    prompt_s = demand.prompt_tokens / speed
    waiting_s = max(_LEAST_QUEUE_SHARE * config.ttft_target_s, config.ttft_target_s - prompt_s)
    queue = _share(demand.backlog_tokens - demand.owed_tokens, speed * waiting_s)
    behind = f"{demand.backlog_tokens:.0f} tokens wait, to be computed within {waiting_s:.2f} s"
    if demand.owed_tokens:
        behind += f"; {demand.owed_tokens:.0f} of them are left to workers that start or have just done so"
    return Need("flow", flow, ahead), Need("queue", queue, behind)


def decode_needs(demand: DecodeDemand, config: AutoscalingConfig) -> tuple[Need, ...]:
    room = demand.kv_used * demand.growth / config.kv_share
    used = (
        f"{demand.kv_used:.2f} caches in use, {demand.growth:.2f} times that expected, to be {config.kv_share:.0%} full"
    )
    return Need("room", _known(room), used), _pace(demand, config)


def _pace(demand: DecodeDemand, config: AutoscalingConfig) -> Need:
    if not demand.sequences:
        return Need("pace", 0.0, "no sequences")
    if not (math.isfinite(demand.step_s) and math.isfinite(demand.sequence_s) and demand.sequence_s >= 0):
        return Need("pace", math.nan, "it is not known what a sequence adds to the time between tokens")
    target, alone_s = config.itl_target_s, demand.step_s + demand.sequence_s
    left_s = max(target - demand.step_s, _LEAST_PACE_SHARE * demand.step_s)
    each = max(1.0, left_s / demand.sequence_s) if demand.sequence_s else math.inf
    expected = demand.sequences * demand.growth
    share = f"{each:.1f} to a worker" if demand.sequence_s else "which add nothing to each other: one worker serves all"
    because = f"{expected:.1f} sequences, {share}"
    if alone_s >= target:
        because += f"; one alone takes {alone_s:.3f} s a token: no size reaches {target:g} s"
    return Need("pace", _known(expected / each), because)


def _share(amount: float, of_one: float) -> float:
    """Nothing needs nobody, however fast he would be."""
    return 0.0 if amount == 0 else _known(amount / of_one)


def _known(workers: float) -> float:
    return workers if math.isfinite(workers) and workers >= 0 else math.nan
