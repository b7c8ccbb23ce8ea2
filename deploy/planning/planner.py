"""The plan for a demand: the cheapest pools apart against the cheapest that do both, and which of the two is better.

Both have the same hardware, goals and workload. Pure; what is printed of it is the documents' business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from cluster.errors import PlanImpossible
from deploy.planning.apart import Apart
from deploy.planning.demand import Demand, Shortfall
from deploy.planning.search import SAME_PRICE, cheapest_apart, cheapest_whole, slowness
from deploy.planning.shortfalls import apart_shortfalls, gpus_shortfall, whole_shortfalls
from deploy.planning.whole_pool import Whole

Found = TypeVar("Found", Apart, Whole)


class Mode(StrEnum):
    """`DISAGGREGATED`: prefill and decode in pools of their own; `WHOLE`: both in every engine; `AUTO`: the better."""

    AUTO = "auto"
    DISAGGREGATED = "disaggregated"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Plan:
    """`chosen` is one of `apart` and `whole`; where one of them cannot be, its shortfalls say why. `because`: why this
    one."""

    demand: Demand
    apart: Apart | None
    whole: Whole | None
    apart_shortfalls: tuple[Shortfall, ...]
    whole_shortfalls: tuple[Shortfall, ...]
    chosen: Apart | Whole
    because: str


def make_plan(demand: Demand, mode: Mode = Mode.AUTO) -> Plan:
    """Raises `PlanImpossible` with a line for each bound that fails."""
    apart, not_apart = _cheapest(demand, cheapest_apart, apart_shortfalls)
    whole, not_whole = _cheapest(demand, cheapest_whole, whole_shortfalls)
    chosen, because = _choice(apart, whole, mode, not_apart or not_whole)
    if chosen is None:
        raise PlanImpossible(_refusal(mode, not_apart, not_whole))
    return Plan(demand, apart, whole, tuple(not_apart), tuple(not_whole), chosen, because)


def _cheapest(
    demand: Demand, search: Callable[[Demand], Found | None], shortfalls: Callable[[Demand], list[Shortfall]]
) -> tuple[Found | None, list[Shortfall]]:
    if (found := search(demand)) is not None:
        return found, []
    if (fewest := search(_counted(demand))) is not None:
        return None, [gpus_shortfall(fewest.gpus, demand.most_gpus)]
    return None, shortfalls(demand)


def _counted(demand: Demand) -> Demand:
    """The same with as many GPUs as need be and one price for all, so that the cheapest plan is the one of fewest."""
    prefill, decode = replace(demand.prefill, price=1.0), replace(demand.decode, price=1.0)
    return replace(demand, prefill=prefill, decode=decode, most_gpus=sys.maxsize)


def _choice(
    apart: Apart | None, whole: Whole | None, mode: Mode, missing: list[Shortfall]
) -> tuple[Apart | Whole | None, str]:
    """`missing`: what the way lacks that cannot be."""
    if mode is Mode.DISAGGREGATED:
        return apart, "asked for"
    if mode is Mode.WHOLE:
        return whole, "asked for"
    if apart is None or whole is None:
        return apart or whole, f"the other way falls short: {'; '.join(each.text for each in missing)}"
    if abs(apart.price - whole.price) > SAME_PRICE:
        cheaper, dearer = (apart, whole) if apart.price < whole.price else (whole, apart)
        return cheaper, f"it keeps the goals for ${cheaper.price:,.2f} an hour, the other way for ${dearer.price:,.2f}"
    chosen = apart if slowness(apart) < slowness(whole) else whole
    return chosen, "both cost the same, and it stays further below the goals"


def _refusal(mode: Mode, not_apart: list[Shortfall], not_whole: list[Shortfall]) -> str:
    lines = [f"prefill and decode apart: {each.text}" for each in not_apart] if mode is not Mode.WHOLE else []
    if mode is not Mode.DISAGGREGATED:
        lines += [f"both on every worker: {each.text}" for each in not_whole]
    if len({line.split(": ", 1)[1] for line in lines}) == 1:
        lines = [lines[0].split(": ", 1)[1]]
    return "\n".join(f"no plan: {line}" for line in lines)
