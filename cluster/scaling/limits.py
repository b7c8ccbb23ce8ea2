"""What both pools together may have: the ratio between them, and the budget. Pure.

The budget is hard; the ratio is kept as far as bounds and budget allow, by growing the smaller side first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.engine import Role
from cluster.scaling.frame import Bounds, ScalingSetup
from cluster.scaling.pace import whole

_ROUNDING = 1e-9

Sizes = Mapping[Role, int]


@dataclass(frozen=True, slots=True)
class Limit:
    """What has made a pool's size `to` instead of what was wanted before it."""

    name: str
    role: Role
    to: int
    because: str


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes as they are, and between what they may become in one step."""

    sizes: Sizes
    bounds: Mapping[Role, Bounds]


def kept_in_ratio(wanted: Sizes, room: Room, setup: ScalingSetup) -> tuple[dict[Role, int], list[Limit]]:
    """A pool that has ended is left alone, and so is the other one then."""
    rule, sizes, limits = setup.rule, dict(wanted), list[Limit]()
    prefill, decode = sizes[Role.PREFILL], sizes[Role.DECODE]
    if not prefill or not decode:
        return sizes, limits
    if rule.ratio_most is not None and prefill > rule.ratio_most * decode + _ROUNDING:
        text = f"at most {rule.ratio_most:g} prefill workers for each decode worker"
        limits += _raise(Role.DECODE, whole(prefill / rule.ratio_most), text, sizes, room)
        limits += _lower(Role.PREFILL, int(rule.ratio_most * sizes[Role.DECODE] + _ROUNDING), text, sizes, room)
    elif rule.ratio_least is not None and prefill < rule.ratio_least * decode - _ROUNDING:
        text = f"at least {rule.ratio_least:g} prefill workers for each decode worker"
        limits += _raise(Role.PREFILL, whole(rule.ratio_least * decode), text, sizes, room)
        limits += _lower(Role.DECODE, int(sizes[Role.PREFILL] / rule.ratio_least + _ROUNDING), text, sizes, room)
    return sizes, limits


def kept_in_budget(wanted: Sizes, room: Room, setup: ScalingSetup) -> tuple[dict[Role, int], list[Limit]]:
    """Where not all that is wanted fits, nothing that is there and still wanted goes for the other pool's sake, and the
    rest goes one by one to the pool that lacks the larger part of what it wants."""
    budget = setup.rule.budget
    if budget is None or setup.cost(wanted) <= budget + _ROUNDING:
        return dict(wanted), []
    least = {role: min(wanted[role], room.bounds[role].least) for role in wanted}
    kept = {role: max(least[role], min(wanted[role], room.sizes[role])) for role in wanted}
    given = _granted(_granted(least, kept, setup, budget), wanted, setup, budget)
    text = f"the budget of {budget:g} is for both pools; {_said(wanted)} would cost {setup.cost(wanted):g}"
    return given, [Limit("budget", role, given[role], text) for role in wanted if given[role] < wanted[role]]


def _granted(given: Sizes, wanted: Sizes, setup: ScalingSetup, budget: float) -> dict[Role, int]:
    granted = dict(given)
    while True:
        left = budget - setup.cost(granted) + _ROUNDING
        lacking = [role for role in granted if granted[role] < wanted[role] and setup.pools[role].cost <= left]
        if not lacking:
            return granted
        neediest = max(lacking, key=lambda role: (wanted[role] / (granted[role] + 1), role is Role.DECODE))
        granted[neediest] += 1


def _raise(role: Role, to: int, because: str, sizes: dict[Role, int], room: Room) -> list[Limit]:
    to = room.bounds[role].clamp(max(to, sizes[role]))
    if to <= sizes[role]:
        return []
    sizes[role] = to
    return [Limit("ratio", role, to, because)]


def _lower(role: Role, to: int, because: str, sizes: dict[Role, int], room: Room) -> list[Limit]:
    """What is there is not ended for the ratio's sake; it only grows no further."""
    to = max(to, room.bounds[role].least, min(sizes[role], room.sizes[role]), 1)
    if to >= sizes[role]:
        return []
    sizes[role] = to
    return [Limit("ratio", role, to, because)]


def _said(sizes: Sizes) -> str:
    return ", ".join(f"{role.value} {count}" for role, count in sizes.items())
