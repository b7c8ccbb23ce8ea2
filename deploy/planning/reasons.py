"""Why each number of a plan is what it is, in words: what binds it, and what would fail with one replica fewer.

Only says what the plan was made from; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from cluster.cost_model import CostModel, Part
from cluster.model_size import active_parameters, kv_bytes, kv_bytes_per_token, parameters, weight_bytes
from cluster.step_work import Chunk, Step
from deploy.planning.apart import Apart
from deploy.planning.demand import Demand
from deploy.planning.engine_times import MOST_SEQUENCES
from deploy.planning.planner import Plan
from deploy.planning.queueing import percentile
from deploy.planning.search import DecodeSide, Pair, PrefillSide, WholeSide, fitting
from deploy.planning.whole_pool import Whole

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Reason:
    number: str
    value: str
    why: str


def plan_reasons(plan: Plan) -> list[Reason]:
    found = list(_model_reasons(plan.demand))
    found += _apart_reasons(plan.chosen) if isinstance(plan.chosen, Apart) else _whole_reasons(plan.chosen)
    return [*found, _choice_reason(plan)]


def _model_reasons(demand: Demand) -> Iterator[Reason]:
    shape, work = demand.shape, demand.workload
    active = active_parameters(shape)
    yield Reason(
        "parameters",
        f"{parameters(shape) / _GB:.2f} B",
        f"{active / _GB:.2f} B of them work on each token: two operations",
    )
    yield Reason("weights", f"{weight_bytes(shape) / _GB:.1f} GB", "parameters times the bytes that each is held in")
    usual = kv_bytes(shape, work.context)
    yield Reason(
        "KV cache of a token",
        f"{kv_bytes_per_token(shape) / 1e3:.1f} kB",
        f"a usual sequence has {work.context:,.0f} tokens in it while it decodes: {usual / _GB:.3g} GB",
    )


def _apart_reasons(plan: Apart) -> Iterator[Reason]:
    demand, prefill, decode = plan.demand, plan.prefill, plan.decode
    pair = Pair(demand, PrefillSide(demand, prefill.engine), DecodeSide(demand, decode.engine))
    yield _split_reason("prefill", demand, prefill.engine)
    yield Reason(
        "prefill replicas",
        str(prefill.replicas),
        f"prompts keep {prefill.busy * prefill.replicas:.2f} of them busy; with one fewer"
        f" {_failure(demand, pair.at(prefill.replicas - 1, decode.replicas) if prefill.replicas > 1 else None)}",
    )
    yield _chunk_reason("prefill tokens in a step", demand, prefill.engine, prefill.times.chunk, 0.0)
    yield _split_reason("decode", demand, decode.engine)
    yield Reason(
        "decode replicas",
        str(decode.replicas),
        f"{decode.running.mean:.1f} sequences run on each; with one fewer"
        f" {_failure(demand, pair.at(prefill.replicas, decode.replicas - 1) if decode.replicas > 1 else None)}",
    )
    yield _places_reason("decode sequences at once", demand, decode.engine, decode.places)
    yield _step_reason("decode step", demand, decode.engine, decode.running.mean)
    yield from _hand_over_reasons(plan)
    yield _ttft_reason(plan, fmean(prefill.times.alone_s), prefill.line.chance)


def _whole_reasons(plan: Whole) -> Iterator[Reason]:
    demand, pool = plan.demand, plan.pool
    engine, chunk = pool.whole.engine, pool.whole.times.chunk
    side = WholeSide(demand, engine, chunk)
    yield _split_reason("worker", demand, engine)
    yield Reason(
        "replicas",
        str(pool.replicas),
        f"steps with prompts in them take {pool.busy:.0%} of their time; with one fewer"
        f" {_failure(demand, side.at(pool.replicas - 1) if pool.replicas > 1 else None)}",
    )
    yield _chunk_reason("prompt tokens in a step", demand, engine, chunk, pool.running.mean)
    yield _places_reason("sequences at once", demand, engine, pool.whole.places)
    yield _step_reason("step without prompts", demand, engine, pool.running.mean)
    yield _ttft_reason(plan, fmean(pool.times.alone_s), pool.line.chance)


def _split_reason(role: str, demand: Demand, engine: CostModel) -> Reason:
    sizes = [each.tensor_parallel for each in fitting(demand, demand.engines(engine.hardware))]
    smaller = [each for each in demand.engines(engine.hardware) if each.tensor_parallel not in sizes]
    why = f"of {', '.join(map(str, sizes))}, the cheapest that keeps the goals"
    if smaller:
        short = max(smaller, key=lambda each: each.tensor_parallel)
        why += f"; on {short.tensor_parallel} {_lack(demand, short)}"
    return Reason(f"{role} tensor parallelism", str(engine.tensor_parallel), why)


def _lack(demand: Demand, engine: CostModel) -> str:
    if engine.kv_room_each <= 0:
        return f"the weights are {-engine.kv_room_each / _GB:.1f} GB too large for each GPU"
    lacking = engine.kv_bytes_each(demand.workload.longest) - engine.kv_room_each
    return f"the longest request's KV cache is {lacking / _GB:.1f} GB too large for each GPU"


def _failure(demand: Demand, fewer: Apart | Whole | None) -> str:
    """What of the goals this plan misses."""
    if fewer is None:
        return "there is more to do than can be done"
    goals, name = demand.goals, f"p{demand.goals.share * 100:g}"
    prefill, decode = (fewer.prefill, fewer.decode) if isinstance(fewer, Apart) else (fewer.pool, fewer.pool)
    if prefill.busy > demand.most_busy:
        return f"prompts would take {prefill.busy:.0%} of each one's time, above the {demand.most_busy:.0%} kept to"
    if decode.running.wait_chance > demand.most_full:
        return f"{decode.running.wait_chance:.1%} of the sequences would find no place"
    gap = percentile(fewer.gap_longer_than, goals.share)
    if gap > goals.itl_s:
        return f"ITL {name} would be {gap * 1e3:.1f} ms"
    return f"TTFT {name} would be {percentile(fewer.ttft_later_than, goals.share):.2f} s"


def _chunk_reason(number: str, demand: Demand, engine: CostModel, chunk: int, sequences: float) -> Reason:
    cost = engine.step(Step(Chunk(float(chunk)), sequences, demand.workload.context))
    why = f"a full step takes {cost.seconds * 1e3:.1f} ms, bound by {cost.bound} ({_intensity(cost.parts)})"
    return Reason(number, f"{chunk:,}", why)


def _step_reason(number: str, demand: Demand, engine: CostModel, sequences: float) -> Reason:
    cost = engine.step(Step(sequences=sequences, context=demand.workload.context))
    why = f"with {sequences:.1f} sequences, bound by {cost.bound} ({_intensity(cost.parts)})"
    return Reason(number, f"{cost.seconds * 1e3:.1f} ms", why)


def _intensity(parts: tuple[Part, ...]) -> str:
    working = [part for part in parts if part.flops > 0]
    return "operations a byte: " + ", ".join(f"{part.name} {part.intensity:.0f}" for part in working)


def _places_reason(number: str, demand: Demand, engine: CostModel, places: int) -> Reason:
    each = engine.kv_bytes_each(demand.workload.context)
    why = f"{engine.kv_room_each / _GB:.1f} GB of each GPU are left for the cache, a sequence takes {each / _GB:.3g} GB"
    return Reason(number, str(places), why + (" (and no engine gets more)" if places == MOST_SEQUENCES else ""))


def _hand_over_reasons(plan: Apart) -> Iterator[Reason]:
    moved = plan.hand_over
    connector = "vllm-nixl" if moved.stock else "baton"
    why = "one kind of KV cache, pools split alike: the first token leaves before the cache moves"
    if moved.stock:
        why = "sliding windows or pools split unlike: only vLLM's own moves such caches, and decode samples every token"
    yield Reason("connector", connector, why)
    yield Reason(
        "transfer",
        f"{fmean(moved.seconds) * 1e3:.1f} ms",
        f"{moved.each_bytes_s / _GB:.2f} GB/s through each GPU of the smaller pool, {moved.busy:.0%} of its network",
    )


def _ttft_reason(plan: Apart | Whole, alone_s: float, chance: float) -> Reason:
    share = plan.demand.goals.share
    ttft = percentile(plan.ttft_later_than, share)
    why = f"{alone_s:.3f} s on average to compute a prompt; {chance:.0%} of the prompts wait for others first (M/G/k)"
    return Reason(f"TTFT p{share * 100:g}", f"{ttft:.3f} s", why)


def _choice_reason(plan: Plan) -> Reason:
    chosen = "disaggregated" if isinstance(plan.chosen, Apart) else "whole"
    return Reason("disaggregate", "yes" if chosen == "disaggregated" else "no", plan.because)
