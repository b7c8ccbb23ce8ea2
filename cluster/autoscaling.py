"""How loaded a replica is, and how many replicas a pool should have for it.

Pure rules. Delays, and who starts or stops a replica, are the caller's: a rule answers for this moment alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.config import AutoscaleBounds

# The name under which a replica reports its own load, and the policy reads it.
LOAD_METRIC = "load"

_ROUNDING = 1e-9  # loads that add up to a whole number of replicas must not cost one more for their last bit


def prefill_load(queued_tokens: int, bounds: AutoscaleBounds) -> float:
    """Load of a prefill replica that has `queued_tokens` prompt tokens submitted and not yet computed. 0 is idle."""
    return queued_tokens / bounds.tokens_per_unit


def decode_load(running: int, kv_usage: float, bounds: AutoscaleBounds) -> float:
    """Load of a decode replica: sequences or KV blocks (`kv_usage`, 0 to 1), whichever is scarcer. 0 is idle."""
    return max(running / bounds.sequences_per_unit, kv_usage)


def desired_replicas(loads: Sequence[float], bounds: AutoscaleBounds, current: int) -> int:
    """The number of replicas that brings the mean load to `bounds.target_load`, within the bounds.

    `loads` has one entry for each replica that could report, in any order; NaN and infinity mean "not known". `current`
    is the number asked for now: replicas among them that are unknown or still starting never move the number by
    themselves. They count as idle where the known ones call for more, and as on target where those call for fewer.
    """
    known = [load for load in loads if math.isfinite(load)]
    unknown = max(current, len(loads)) - len(known)
    needed = sum(known) / bounds.target_load
    at_least, at_most = _whole(needed), _whole(needed + unknown)
    wanted = min(max(current, at_least), at_most)
    return min(max(wanted, bounds.min_replicas), bounds.max_replicas)


def _whole(replicas: float) -> int:
    return math.ceil(replicas - _ROUNDING)
