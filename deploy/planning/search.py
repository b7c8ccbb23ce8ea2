"""The cheapest pools that keep the goals: the least replicas for every way to split the model, then the least price.

What a pool delivers only gets better with replicas, so the least number is found by halving, and exactly: a plan for a
harder demand is never smaller than one for an easier one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeVar

from cluster.cost_model import CostModel
from deploy.planning.apart import Apart, hand_over, worker_price
from deploy.planning.demand import Demand
from deploy.planning.engine_times import most_sequences, prompt_times, step_times
from deploy.planning.pools import DecodePool, PrefillPool, decode_pool, prefill_pool
from deploy.planning.queueing import percentile
from deploy.planning.whole_pool import Whole, WholeEngine, whole_pool

MOST_REPLICAS = 4_096
PREFILL_CHUNKS = (2_048, 4_096, 8_192, 16_384)
WHOLE_CHUNKS = (128, 256, 512, 1_024, 2_048, 4_096, 8_192)
SAME_PRICE = 1e-9

Found = TypeVar("Found", Apart, Whole)


def cheapest_apart(demand: Demand) -> Apart | None:
    """Of all that take at most `most_gpus`; None where none of those keeps the goals."""
    prefill = [PrefillSide(demand, engine) for engine in fitting(demand, demand.engines(demand.prefill))]
    decode = [DecodeSide(demand, engine) for engine in fitting(demand, demand.engines(demand.decode))]
    pairs = [
        Pair(demand, one, other)
        for one in prefill
        for other in decode
        if demand.unequal_split or one.engine.tensor_parallel == other.engine.tensor_parallel
    ]
    best: Apart | None = None
    for pair in sorted(pairs, key=lambda each: each.least_price):
        if best is not None and pair.least_price > best.price + SAME_PRICE:
            break
        if (found := pair.cheapest()) is not None:
            best = _better(best, found)
    return best


def cheapest_whole(demand: Demand) -> Whole | None:
    """Of all that take at most `most_gpus`; None where none of those keeps the goals."""
    best: Whole | None = None
    kinds = {each.name: each for each in (demand.prefill, demand.decode)}
    for hardware in kinds.values():
        for engine in fitting(demand, demand.engines(hardware)):
            for chunk in WHOLE_CHUNKS:
                most = demand.most_gpus // engine.tensor_parallel
                if best is not None:
                    most = min(most, int((best.price + SAME_PRICE) / worker_price(engine)))
                if (found := WholeSide(demand, engine, chunk).cheapest(most)) is not None:
                    best = _better(best, found)
    return best


def fitting(demand: Demand, engines: Iterable[CostModel]) -> list[CostModel]:
    """Those with room for the weights and the longest request."""
    return [engine for engine in engines if most_sequences(engine, demand.workload) > 0]


def slowness(plan: Apart | Whole) -> float:
    """How much of what the goals allow is used; to choose between plans of one price."""
    goals = plan.demand.goals
    ttft = percentile(plan.ttft_later_than, goals.share) / goals.ttft_s
    return ttft + percentile(plan.gap_longer_than, goals.share) / goals.itl_s


def least(holds: Callable[[int], bool], first: int = 1, most: int = MOST_REPLICAS) -> int | None:
    """The least number from `first` to `most` for which `holds`, which holds for all above it too; None: for none."""
    low, high = first - 1, first
    while not holds(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class PrefillSide:
    """An engine for prefill; its pools are remembered by their number of replicas."""

    def __init__(self, demand: Demand, engine: CostModel) -> None:
        self.engine = engine
        self._workload = demand.workload
        self._times = [prompt_times(engine, demand.workload, chunk) for chunk in PREFILL_CHUNKS]
        self._pools: dict[int, list[PrefillPool]] = {}

    def pools(self, replicas: int) -> list[PrefillPool]:
        """One for each size of chunk that keeps up."""
        if replicas not in self._pools:
            made = (prefill_pool(self.engine, replicas, times, self._workload) for times in self._times)
            self._pools[replicas] = [pool for pool in made if pool is not None]
        return self._pools[replicas]


class DecodeSide:
    """An engine for decode; its pools are remembered by their number of replicas."""

    def __init__(self, demand: Demand, engine: CostModel) -> None:
        self.engine = engine
        self._workload = demand.workload
        self._steps_s = step_times(engine, demand.workload, most_sequences(engine, demand.workload))
        self._pools: dict[int, DecodePool | None] = {}

    def pool(self, replicas: int) -> DecodePool | None:
        if replicas not in self._pools:
            self._pools[replicas] = decode_pool(self.engine, replicas, self._steps_s, self._workload)
        return self._pools[replicas]


class Pair:
    """One way to split the model for prefill and one for decode."""

    def __init__(self, demand: Demand, prefill: PrefillSide, decode: DecodeSide) -> None:
        self._demand, self._prefill, self._decode = demand, prefill, decode
        self._prices = worker_price(prefill.engine), worker_price(decode.engine)
        self._gpus = prefill.engine.tensor_parallel, decode.engine.tensor_parallel

    @cached_property
    def least_replicas(self) -> tuple[int, int] | None:
        """Of prefill and of decode, each while there is no lack of the other; None where the goals cannot be kept."""
        prefill = least(lambda count: self._holds(count, MOST_REPLICAS))
        decode = least(lambda count: self._holds(MOST_REPLICAS, count)) if prefill else None
        return None if prefill is None or decode is None else (prefill, decode)

    @property
    def least_price(self) -> float:
        """No numbers of replicas that keep the goals cost less."""
        return math.inf if self.least_replicas is None else self._price(*self.least_replicas)

    def cheapest(self) -> Apart | None:
        """More prefill replicas than need be may save decode replicas, where both share a network or a goal. None: too
        few GPUs, or too high goals."""
        if self.least_replicas is None:
            return None
        prefill, decode = self.least_replicas
        best: Apart | None = None
        while (most := self._most_decode(prefill)) >= decode and (
            best is None or self._price(prefill, decode) < best.price - SAME_PRICE
        ):
            found = least(functools.partial(self._holds, prefill), decode, most)
            plan = None if found is None else self.at(prefill, found)
            if plan is not None and (best is None or plan.price < best.price):
                best = plan
            prefill += 1
        return best

    def at(self, prefill: int, decode: int) -> Apart | None:
        """With so many replicas, and of the chunk sizes that keep the goals the one by which fewest prompts come late.
        None: too much to do."""
        generating = self._decode.pool(decode)
        moved = hand_over(self._demand, self._prefill.engine, self._decode.engine, (prefill, decode))
        if generating is None or moved is None:
            return None
        plans = [Apart(self._demand, pool, generating, moved) for pool in self._prefill.pools(prefill)]
        goal = self._demand.goals.ttft_s
        return min(plans, key=lambda plan: (not plan.keeps_goals(), plan.ttft_later_than(goal)), default=None)

    def _most_decode(self, prefill: int) -> int:
        """Replicas for which there are GPUs beside those of so many prefill replicas."""
        left = self._demand.most_gpus - prefill * self._gpus[0]
        return min(left // self._gpus[1], MOST_REPLICAS) if prefill <= MOST_REPLICAS else 0

    def _holds(self, prefill: int, decode: int) -> bool:
        plan = self.at(prefill, decode)
        return plan is not None and plan.keeps_goals()

    def _price(self, prefill: int, decode: int) -> float:
        return prefill * self._prices[0] + decode * self._prices[1]


class WholeSide:
    """An engine that does both, with prompts cut into chunks of one size."""

    def __init__(self, demand: Demand, engine: CostModel, chunk: int) -> None:
        workload, places = demand.workload, most_sequences(engine, demand.workload)
        self._demand = demand
        self._engine = WholeEngine(
            engine=engine,
            steps_s=step_times(engine, workload, places),
            mixed_s=step_times(engine, workload, places, chunk),
            times=prompt_times(engine, workload, chunk),
        )

    def cheapest(self, most: int = MOST_REPLICAS) -> Whole | None:
        """Of at most so many replicas; None where those do not keep the goals."""
        if most < 1 or not self._holds(min(most, MOST_REPLICAS)):
            return None
        replicas = least(self._holds)
        return None if replicas is None else self.at(replicas)

    def at(self, replicas: int) -> Whole | None:
        """None: too much to do."""
        pool = whole_pool(self._engine, replicas, self._demand.workload)
        return None if pool is None else Whole(self._demand, pool)

    def _holds(self, replicas: int) -> bool:
        plan = self.at(replicas)
        return plan is not None and plan.keeps_goals()


def _better(one: Found | None, other: Found) -> Found:
    if one is None or other.price < one.price - SAME_PRICE:
        return other
    if one.price < other.price - SAME_PRICE:
        return one
    return other if slowness(other) < slowness(one) else one
