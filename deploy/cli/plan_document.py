"""A plan as the document that `baton plan` prints: stable keys, seconds and bytes throughout.

Knows plans; knows nothing of options or of how a document is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Literal

from cluster.cost_model import CostModel
from cluster.model_size import active_parameters, kv_bytes, kv_bytes_per_token, parameters, weight_bytes
from deploy.cli.document_part import Part
from deploy.planning.apart import Apart
from deploy.planning.demand import Demand
from deploy.planning.planner import Plan
from deploy.planning.queueing import percentile
from deploy.planning.reasons import plan_reasons
from deploy.planning.whole_pool import Whole

_HOUR_S = 3_600.0


class Model(Part):
    name: str
    parameters: int
    active_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int


class Load(Part):
    requests_per_s: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    longest_request_tokens: float
    prefix_hits: float


class GoalPair(Part):
    """Seconds, kept in `percentile` percent of the cases."""

    ttft_s: float
    itl_s: float
    percentile: float


class Pool(Part):
    """`max_batched_tokens`: prompt tokens in one step; None where the pool computes no prompts. `max_sequences`: that
    fit into the KV cache of one worker; None where it generates nothing. `busy`: share of time spent on prompts."""

    role: Literal["prefill", "decode", "whole"]
    hardware: str
    replicas: int
    tensor_parallel: int
    gpus: int
    max_batched_tokens: int | None
    max_sequences: int | None
    busy: float | None
    mean_sequences: float | None
    p99_sequences: int | None
    weight_bytes_per_gpu: int
    kv_bytes_per_gpu: int


class Spread(Part):
    """Seconds."""

    p50: float
    p95: float
    p99: float


class Transfer(Part):
    """`bytes_per_s`: of all transfers together; `busiest_gpu_bytes_per_s`: through one GPU of the smaller pool, `busy`
    of the network it has."""

    connector: str
    bytes_per_request: int
    bytes_per_s: int
    busiest_gpu_bytes_per_s: int
    busy: float
    mean_s: float


class Arrangement(Part):
    pools: list[Pool]
    ratio: str | None
    gpus: int
    dollars_per_hour: float
    dollars_per_million_output_tokens: float
    ttft_s: Spread
    itl_s: Spread
    transfer: Transfer | None


class Why(Part):
    number: str
    value: str
    why: str


class PlanDocument(Part):
    """`disaggregated` and `whole` are None where they cannot be; `impossible` then says why. `reasons` only when asked
    for."""

    api_version: Literal["baton/v1"] = "baton/v1"
    kind: Literal["Plan"] = "Plan"
    model: Model
    load: Load
    goals: GoalPair
    chosen: Literal["disaggregated", "whole"]
    because: str
    disaggregated: Arrangement | None
    whole: Arrangement | None
    impossible: list[str]
    assumptions: list[str]
    reasons: list[Why] | None = None


def plan_document(plan: Plan, assumptions: Iterable[str], why: bool) -> PlanDocument:
    demand = plan.demand
    return PlanDocument(
        model=_model(demand),
        load=_load(demand),
        goals=GoalPair(
            ttft_s=demand.goals.ttft_s, itl_s=demand.goals.itl_s, percentile=round(demand.goals.share * 100, 6)
        ),
        chosen="disaggregated" if isinstance(plan.chosen, Apart) else "whole",
        because=plan.because,
        disaggregated=None if plan.apart is None else _apart(plan.apart),
        whole=None if plan.whole is None else _whole(plan.whole),
        impossible=[
            *(f"disaggregated: {each.text}" for each in plan.apart_shortfalls),
            *(f"whole: {each.text}" for each in plan.whole_shortfalls),
        ],
        assumptions=list(assumptions),
        reasons=[Why(number=each.number, value=each.value, why=each.why) for each in plan_reasons(plan)]
        if why
        else None,
    )


def _model(demand: Demand) -> Model:
    shape = demand.shape
    return Model(
        name=shape.name,
        parameters=parameters(shape),
        active_parameters=active_parameters(shape),
        weight_bytes=round(weight_bytes(shape)),
        kv_bytes_per_token=round(kv_bytes_per_token(shape)),
    )


def _load(demand: Demand) -> Load:
    work = demand.workload
    return Load(
        requests_per_s=_short(work.rate),
        mean_prompt_tokens=_short(work.mean_prompt),
        mean_output_tokens=_short(work.mean_output),
        longest_request_tokens=math.ceil(work.longest),
        prefix_hits=work.hit_share,
    )


def _apart(plan: Apart) -> Arrangement:
    prefill, decode = plan.prefill, plan.decode
    pools = [
        _pool("prefill", prefill.engine, prefill.replicas, chunk=prefill.times.chunk, busy=_short(prefill.busy)),
        _pool(
            "decode",
            decode.engine,
            decode.replicas,
            places=decode.places,
            mean=_short(decode.running.mean),
            p99=decode.running.quantile(0.99),
        ),
    ]
    common = math.gcd(prefill.replicas, decode.replicas)
    ratio = f"{prefill.replicas // common}:{decode.replicas // common}"
    return _arrangement(plan, pools, ratio, _transfer(plan))


def _whole(plan: Whole) -> Arrangement:
    pool = plan.pool
    one = _pool(
        "whole",
        pool.whole.engine,
        pool.replicas,
        chunk=pool.whole.times.chunk,
        busy=_short(pool.busy),
        places=pool.whole.places,
        mean=_short(pool.running.mean),
        p99=pool.running.quantile(0.99),
    )
    return _arrangement(plan, [one], None, None)


def _arrangement(plan: Apart | Whole, pools: list[Pool], ratio: str | None, transfer: Transfer | None) -> Arrangement:
    work = plan.demand.workload
    millions_per_hour = work.rate * work.mean_output * _HOUR_S / 1e6
    return Arrangement(
        pools=pools,
        ratio=ratio,
        gpus=plan.gpus,
        dollars_per_hour=_short(plan.price),
        dollars_per_million_output_tokens=_short(plan.price / millions_per_hour),
        ttft_s=_spread(plan.ttft_later_than),
        itl_s=_spread(plan.gap_longer_than),
        transfer=transfer,
    )


def _pool(  # noqa: PLR0913  the columns of a pool
    role: Literal["prefill", "decode", "whole"],
    engine: CostModel,
    replicas: int,
    *,
    chunk: int | None = None,
    places: int | None = None,
    busy: float | None = None,
    mean: float | None = None,
    p99: int | None = None,
) -> Pool:
    return Pool(
        role=role,
        hardware=engine.hardware.name,
        replicas=replicas,
        tensor_parallel=engine.tensor_parallel,
        gpus=replicas * engine.tensor_parallel,
        max_batched_tokens=chunk,
        max_sequences=places,
        busy=busy,
        mean_sequences=mean,
        p99_sequences=p99,
        weight_bytes_per_gpu=round(engine.weight_bytes_each),
        kv_bytes_per_gpu=round(engine.kv_room_each),
    )


def _transfer(plan: Apart) -> Transfer:
    demand, moved = plan.demand, plan.hand_over
    each = fmean(kv_bytes(demand.shape, prompt) for prompt in demand.workload.prompts)
    return Transfer(
        connector="vllm-nixl" if moved.stock else "baton",
        bytes_per_request=round(each),
        bytes_per_s=round(each * demand.workload.rate),
        busiest_gpu_bytes_per_s=round(moved.each_bytes_s),
        busy=_short(moved.busy),
        mean_s=_short(fmean(moved.seconds)),
    )


def _spread(later_than: Callable[[float], float]) -> Spread:
    return Spread(**{f"p{at}": _short(percentile(later_than, at / 100.0)) for at in (50, 95, 99)})


def _short(value: float) -> float:
    """Four digits: more would promise what a model does not know."""
    return float(f"{value:.4g}")
