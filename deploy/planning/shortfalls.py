"""Why there is no plan: the bound that fails however many workers there are, and by how much.

Looked at with no load at all, where each bound is at its best; what then still holds is a matter of size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from cluster.cost_model import CostModel
from cluster.hardware import Hardware
from cluster.model_size import kv_bytes, weight_bytes
from cluster.step_work import Chunk, Step
from deploy.planning.apart import needs_stock_connector
from deploy.planning.demand import Demand, Limit, Shortfall
from deploy.planning.engine_times import prompt_times
from deploy.planning.search import MOST_REPLICAS, PREFILL_CHUNKS, WHOLE_CHUNKS, fitting

_GB = 1e9


def apart_shortfalls(demand: Demand) -> list[Shortfall]:
    """At least one; of pools that are apart."""
    if memory := _memory_shortfalls(demand, [demand.prefill, demand.decode]):
        return memory
    prefill = fitting(demand, demand.engines(demand.prefill))
    decode = fitting(demand, demand.engines(demand.decode))
    idle = [_ttft_shortfall(demand, prefill, PREFILL_CHUNKS), _itl_shortfall(demand, decode)]
    found = [each for each in idle if each is not None]
    return found or [_network_shortfall(demand, prefill, decode) or _size_shortfall(demand)]


def whole_shortfalls(demand: Demand) -> list[Shortfall]:
    """At least one; of a pool that does both."""
    kinds = {each.name: each for each in (demand.prefill, demand.decode)}.values()
    engines = [engine for kind in kinds for engine in fitting(demand, demand.engines(kind))]
    if not engines:
        return _memory_shortfalls(demand, kinds)
    idle = [_ttft_shortfall(demand, engines, WHOLE_CHUNKS), _itl_shortfall(demand, engines)]
    found = [each for each in idle if each is not None]
    return found or [_size_shortfall(demand)]


def gpus_shortfall(needed: int, allowed: int) -> Shortfall:
    text = f"{needed:,} GPUs are needed, {needed - allowed:,} more than the {allowed:,} allowed"
    return Shortfall(Limit.GPUS, needed, allowed, text)


def _memory_shortfalls(demand: Demand, kinds: Iterable[Hardware]) -> list[Shortfall]:
    found = [_memory_shortfall(demand, kind) for kind in {each.name: each for each in kinds}.values()]
    return [each for each in found if each is not None]


def _memory_shortfall(demand: Demand, hardware: Hardware) -> Shortfall | None:
    engines = demand.engines(hardware)
    if fitting(demand, engines):
        return None
    engine = max(engines, key=lambda each: each.kv_room_each * each.tensor_parallel)
    size, gpus = engine.tensor_parallel, f"{engine.tensor_parallel} x {hardware.name}"
    if engine.kv_room_each <= 0:
        needed = weight_bytes(demand.shape)
        allowed = needed + engine.kv_room_each * size
        text = (
            f"the weights of {demand.shape.name} take {needed / _GB:.1f} GB, but {gpus} have {allowed / _GB:.1f} GB for"
            f" them: {(needed - allowed) / _GB:.1f} GB too little"
        )
        return Shortfall(Limit.WEIGHTS, needed, allowed, text)
    needed, allowed = engine.kv_bytes_each(demand.workload.longest) * size, engine.kv_room_each * size
    text = (
        f"the KV cache of the longest request, {demand.workload.longest:,.0f} tokens, takes {needed / _GB:.1f} GB on"
        f" {gpus}, which have {allowed / _GB:.1f} GB left for it: {(needed - allowed) / _GB:.1f} GB too little"
    )
    return Shortfall(Limit.CACHE, needed, allowed, text)


def _ttft_shortfall(demand: Demand, engines: list[CostModel], chunks: tuple[int, ...]) -> Shortfall | None:
    """Of a prompt that finds every worker idle."""
    goals, workload = demand.goals, demand.workload
    options = [
        (demand.edge_s + _upper(prompt_times(engine, workload, chunk).alone_s, goals.share), engine)
        for engine in engines
        for chunk in chunks
    ]
    seconds, engine = min(options, key=lambda option: option[0])
    if seconds <= goals.ttft_s:
        return None
    prompt = _upper(workload.prompts, goals.share)
    bound = engine.step(Step(Chunk(workload.computed(prompt)))).bound
    text = (
        f"TTFT {goals.ttft_s:g} s: a prompt of {prompt:,.0f} tokens takes {seconds:.3g} s on an idle worker of"
        f" {engine.tensor_parallel} x {engine.hardware.name}, bound by {bound}: {seconds - goals.ttft_s:.3g} s too long"
    )
    return Shortfall(Limit.TTFT, seconds, goals.ttft_s, text)


def _itl_shortfall(demand: Demand, engines: list[CostModel]) -> Shortfall | None:
    """Of a sequence that is alone in its engine."""
    if demand.workload.later_tokens <= 0:
        return None
    context = demand.workload.context
    engine = min(engines, key=lambda each: each.decode_s(1, context))
    cost = engine.step(Step(sequences=1, context=context))
    if cost.seconds <= demand.goals.itl_s:
        return None
    text = (
        f"ITL {demand.goals.itl_s * 1e3:g} ms: a step of one sequence takes {cost.seconds * 1e3:.3g} ms on"
        f" {engine.tensor_parallel} x {engine.hardware.name}, bound by {cost.bound}:"
        f" {(cost.seconds - demand.goals.itl_s) * 1e3:.3g} ms too long"
    )
    return Shortfall(Limit.ITL, cost.seconds, demand.goals.itl_s, text)


def _network_shortfall(demand: Demand, prefill: list[CostModel], decode: list[CostModel]) -> Shortfall | None:
    """Of a transfer that has the network to itself, in the pair of engines where it disturbs least."""
    goals = demand.goals
    network = min(demand.network_of(demand.prefill), demand.network_of(demand.decode))
    options = []
    for one in prefill:
        for other in decode:
            if not demand.unequal_split and one.tensor_parallel != other.tensor_parallel:
                continue
            share = max(one.kv_share, other.kv_share)
            size = kv_bytes(demand.shape, _upper(demand.workload.prompts, goals.share)) * share
            stock = needs_stock_connector(demand, one, other)
            options.append((demand.setup_s + size / network, stock, other.decode_s(1, demand.workload.context)))
    if not options:
        text = "no tensor parallelism has room for the model in both pools: --unequal-split lets them differ"
        return Shortfall(Limit.WEIGHTS, 1.0, 0.0, text)
    seconds, stock, step_s = min(options)
    allowed = (goals.ttft_s if stock else goals.itl_s) - step_s
    if seconds <= allowed:
        return None
    goal = f"TTFT {goals.ttft_s:g} s" if stock else f"ITL {goals.itl_s * 1e3:g} ms"
    text = (
        f"{goal}: the KV cache of a prompt moves in {seconds * 1e3:.3g} ms at {network / _GB:.3g} GB/s for each GPU,"
        f" and {max(allowed, 0) * 1e3:.3g} ms are left for it"
    )
    return Shortfall(Limit.NETWORK, seconds, max(allowed, 0.0), text)


def _size_shortfall(demand: Demand) -> Shortfall:
    text = (
        f"no {MOST_REPLICAS:,} workers of a kind keep TTFT {demand.goals.ttft_s:g} s and ITL"
        f" {demand.goals.itl_s * 1e3:g} ms together at {demand.workload.rate:g} requests/s"
    )
    return Shortfall(Limit.GPUS, math.inf, MOST_REPLICAS, text)


def _upper(values: tuple[float, ...], share: float) -> float:
    """The least of equally likely values that is not exceeded in `share` of the cases."""
    ordered = sorted(values)
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]
