"""The size of both pools, from what is seen of the fleet: one pure function, the same in a cluster and in a simulation.

Each pool follows its own needs (`needs`, `forecast`, `pace`); then bounds, ratio and budget have their say (`limits`).
What is not known moves nothing: a pool whose inputs are stale or no numbers keeps its size, and the reason says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.config_scaling import AutoscalingConfig
from cluster.engine import Role
from cluster.scaling.forecast import Trend
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup, effective_bounds
from cluster.scaling.limits import Limit, Room, kept_in_budget, kept_in_ratio
from cluster.scaling.needs import DecodeDemand, Need, PrefillDemand, decode_needs, prefill_needs, queue_seconds
from cluster.scaling.pace import Pace, Step, paced, whole
from cluster.scaling.reports import Sight
from cluster.scaling.starts import Look, Starts

_TYPICAL_PROMPT = 512.0


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What a pool's size stands on, from one decision to the next. `trend`: of prompt tokens a second, or of sequences.
    `starts`: of a pool whose work waits. The rest is what was last known of a worker's speed, for the time when there
    is none to measure."""

    size: int
    trend: Trend = field(default_factory=Trend)
    pace: Pace = field(default_factory=Pace)
    starts: Starts = field(default_factory=Starts)
    tokens_per_s: float = math.nan
    step_s: float = math.nan
    sequence_s: float = math.nan


@dataclass(frozen=True, slots=True)
class Memory:
    """`busy_at`: clock time of the last sign of demand, or of the last moment in which nobody could have given one.
    `prompt_tokens`: of a typical prompt, to be computed."""

    pools: Mapping[Role, PoolMemory]
    busy_at: float
    looked_at: float
    prompt_tokens: float = _TYPICAL_PROMPT

    @classmethod
    def fresh(cls, sizes: Mapping[Role, int], now: float) -> Memory:
        """To begin with sizes as they are found: as if they had just been chosen."""
        pace = Pace(changed_at=now)
        return cls({role: PoolMemory(size, pace=pace) for role, size in sizes.items()}, busy_at=now, looked_at=now)


@dataclass(frozen=True, slots=True)
class PoolDecision:
    """`because`: of the size, in words. `inputs` by name, NaN where one is not known."""

    before: int
    size: int
    bounds: Bounds
    because: str
    inputs: Mapping[str, float] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wish:
    step: Step
    memory: PoolMemory
    inputs: Mapping[str, float]
    needs: tuple[Need, ...]


def decide(
    setup: ScalingSetup, orders: ScalingOrders, memory: Memory, sight: Sight, now: float
) -> tuple[Memory, dict[Role, PoolDecision]]:
    """The sizes of both pools from now on, and what to remember for the next decision."""
    memory = _noted(memory, sight, now)
    bounds = effective_bounds(setup, orders)
    wishes = {role: _wish(role, setup, orders, bounds[role], memory, sight, now) for role in setup.pools}
    room = Room({role: pool.size for role, pool in memory.pools.items()}, _within_a_step(bounds, memory, setup))
    wanted = {role: wish.step.size for role, wish in wishes.items()}
    sizes, limits = _limited(wanted, room, setup, orders.paused is not None)
    decided = {}
    for role, wish in wishes.items():
        bound = tuple(limit for limit in limits if limit.role is role)
        because = bound[-1].because if bound else wish.step.because
        decided[role] = PoolDecision(
            room.sizes[role], sizes[role], bounds[role], because, wish.inputs, wish.needs, bound
        )
    pools = {role: _resized(wish.memory, sizes[role], now) for role, wish in wishes.items()}
    return replace(memory, pools=pools, looked_at=now), decided


def _noted(memory: Memory, sight: Sight, now: float) -> Memory:
    if sight.blind or _demand(sight):
        memory = replace(memory, busy_at=now)
    if sight.arrived_requests and sight.arrived_tokens > 0:
        typical = memory.prompt_tokens + 0.2 * (sight.arrived_tokens / sight.arrived_requests - memory.prompt_tokens)
        memory = replace(memory, prompt_tokens=max(1.0, typical))
    return memory


def _demand(sight: Sight) -> bool:
    working = any(pool.queued_tokens > 0 or pool.sequences > 0 for pool in sight.pools.values())
    return working or bool(sight.waiting_requests or sight.in_flight or sight.arrived_requests)


def _within_a_step(bounds: Mapping[Role, Bounds], memory: Memory, setup: ScalingSetup) -> dict[Role, Bounds]:
    """As far as the other pool may push this one: no further than it may go by itself."""
    grown = {role: memory.pools[role].size + setup.rule.pace.step_up for role in bounds}
    return {role: Bounds(each.least, max(each.least, min(each.most, grown[role]))) for role, each in bounds.items()}


def _limited(
    wanted: Mapping[Role, int], room: Room, setup: ScalingSetup, paused: bool
) -> tuple[dict[Role, int], list[Limit]]:
    limits: list[Limit] = []
    sizes = {}
    for role, size in wanted.items():
        sizes[role] = room.bounds[role].clamp(size)
        if sizes[role] != size:
            least, most = room.bounds[role].least, room.bounds[role].most
            limits.append(Limit("bounds", role, sizes[role], f"{size} wanted, {least} to {most} allowed"))
    if not paused:
        sizes, ratio = kept_in_ratio(sizes, room, setup)
        limits += ratio
    sizes, budget = kept_in_budget(sizes, room, setup)
    return sizes, limits + budget


def _resized(memory: PoolMemory, size: int, now: float) -> PoolMemory:
    if size == memory.size:
        return memory
    return replace(memory, size=size, pace=memory.pace.changed(memory.size, size, now))


# The wish of one pool


def _wish(
    role: Role,
    setup: ScalingSetup,
    orders: ScalingOrders,
    bounds: Bounds,
    memory: Memory,
    sight: Sight,
    now: float,
) -> _Wish:
    rule, before = setup.rule, memory.pools[role].pace
    pool = replace(memory.pools[role], pace=before.interrupted)  # but where the need is seen and followed
    if sight.blind:
        silent = ", ".join(sight.silent) or "no router yet"
        return _Wish(Step(pool.size, f"nothing is known (last heard: {silent}): as it is"), pool, {}, ())
    measure = _prefill if role is Role.PREFILL else _decode
    pool, inputs, needs = measure(pool, setup, memory, sight, now)
    if orders.paused is not None:
        return _Wish(Step(pool.size, f"paused: {orders.paused}".removesuffix(": ")), pool, inputs, needs)
    unknown = [name for name, value in inputs.items() if not math.isfinite(value)]
    known = [each.workers for each in needs if math.isfinite(each.workers)]
    need = max(known, default=0.0)
    if pool.size == 0:
        step = _asleep(known, rule, sight)
    elif bounds.least == 0 and pool.size == 1 and now - memory.busy_at >= rule.pace.idle_s:
        step = Step(0, f"no demand for {now - memory.busy_at:.0f} s")
    elif len(known) < len(needs) and whole(need) <= pool.size:
        step = Step(pool.size, f"not known: {', '.join(unknown)}: as it is")
    else:
        step, pace = paced(pool.size, need, before, rule.pace, now)
        pool = replace(pool, pace=pace)
    if step.size < pool.size and sight.silent:
        step = Step(pool.size, f"{', '.join(sight.silent)} may have more: no fewer until it reports or is gone")
    return _Wish(step, pool, inputs, needs)


def _asleep(known: list[float], rule: AutoscalingConfig, sight: Sight) -> Step:
    if not _demand(sight):
        return Step(0, "no demand")
    size = min(max(1, whole(max(known, default=1.0))), rule.pace.step_up)
    return Step(size, f"{sight.waiting_requests} requests wait, {sight.in_flight} in all: begins again")


_Measured = tuple[PoolMemory, dict[str, float], tuple[Need, ...]]


def _prefill(pool: PoolMemory, setup: ScalingSetup, memory: Memory, sight: Sight, now: float) -> _Measured:
    rule, seen = setup.rule, sight.pools[Role.PREFILL]
    passed = now - memory.looked_at
    rate = sight.arrived_tokens / passed if passed > 0 else 0.0
    pool = replace(pool, tokens_per_s=_last_known(seen.tokens_per_s, pool.tokens_per_s))
    if math.isfinite(rate):
        pool = replace(pool, trend=pool.trend.measured(rate, now, rule.forecast))
    ahead = pool.trend.ahead(rule.forecast.horizon_s, rate)
    backlog = sight.waiting_tokens + seen.queued_tokens
    look = Look(pool.size, seen.ready, backlog, pool.tokens_per_s, ahead, setup.start_deadline_s)
    pool = replace(pool, starts=pool.starts.after(look, now))
    demand = PrefillDemand(ahead, backlog, pool.starts.owed, pool.tokens_per_s, memory.prompt_tokens)
    inputs = {
        "arriving tokens/s": rate,
        "expected tokens/s": ahead,
        "tokens waiting in routers": sight.waiting_tokens,
        "tokens queued at workers": seen.queued_tokens,
        "tokens left to starting workers": pool.starts.owed,
        "tokens/s of a worker": pool.tokens_per_s,
    }
    if seen.ready:
        inputs["predicted queue s"] = queue_seconds(demand, seen.ready)
    return pool, inputs, prefill_needs(demand, rule)


def _decode(pool: PoolMemory, setup: ScalingSetup, memory: Memory, sight: Sight, now: float) -> _Measured:
    rule, seen = setup.rule, sight.pools[Role.DECODE]
    pool = replace(
        pool,
        step_s=_last_known(seen.step_s, pool.step_s),
        sequence_s=_last_known(seen.sequence_s, pool.sequence_s),
    )
    sequences = seen.sequences if seen.ready else seen.sequences + sight.in_flight
    if math.isfinite(sequences):
        pool = replace(pool, trend=pool.trend.measured(sequences, now, rule.forecast))
    ahead = pool.trend.ahead(rule.forecast.horizon_s, sequences)
    growth = max(1.0, ahead / sequences) if sequences > 0 else 1.0
    demand = DecodeDemand(sequences, seen.kv_used, growth, pool.step_s, pool.sequence_s)
    inputs = {
        "sequences": sequences,
        "expected growth": growth,
        "caches in use": seen.kv_used,
        "s a token alone": pool.step_s,
        "s more a sequence": pool.sequence_s,
        "predicted ITL s": pool.step_s + pool.sequence_s * sequences / max(1, seen.ready),
    }
    return pool, inputs, decode_needs(demand, rule)


def _last_known(measured: float, known: float) -> float:
    return measured if math.isfinite(measured) else known
