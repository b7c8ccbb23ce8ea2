"""A plan as a configuration file: pools, engines and first assumptions as planned, everything else as it is by default.

The result is what `parse_config` accepts; what a platform makes of it is not known here.
"""

from __future__ import annotations

import math

from cluster.cold_start import cold_start
from cluster.config import Config, parse_config
from cluster.cost_model import CostModel
from cluster.errors import ConfigError
from cluster.model_config import WEIGHTS, model_shape
from deploy.document import Json
from deploy.planning.apart import Apart
from deploy.planning.demand import Demand
from deploy.planning.planner import Plan
from deploy.planning.whole_pool import Whole

_BLOCK_TOKENS = 32
_LENGTH_STEP = 1_024
_START_DEADLINE_S = 1_800
_STREAMS_PER_ROUTER = 1_024
_MAKE_FP8 = "fp8_per_tensor"  # vLLM's "fp8" only reads checkpoints that hold them already


def needed_quantization(model: str, weights: str | None) -> str | None:
    """What vLLM must make of the weights in `model`'s own file while it loads them, so that they are held as planned;
    None: nothing. Both as for `model_shape`. Raises `ConfigError` where it cannot make that of them."""
    if weights is None:
        return None
    try:
        own = model_shape(model).precision
    except ConfigError:
        return None  # of the file only its quantisation is not known, and the user has said what it holds
    if own == WEIGHTS[weights]:
        return None
    if own == WEIGHTS["bf16"] and weights == "fp8":
        return _MAKE_FP8
    raise ConfigError(
        f"--emit: engines cannot make {weights} weights of what {model} holds: name a checkpoint in {weights}, or leave"
        " --weights out"
    )


def plan_config(plan: Plan, model_path: str, quantization: str | None = None) -> Config:
    """`model_path`: a directory or a hub name, for the engines, which make `quantization` of its weights. Listens on
    all interfaces, as several machines need.

    A plan without disaggregation gets one prefill worker nevertheless: Baton has no cluster without, and it takes over
    where no decode worker is left.
    """
    chosen = plan.chosen
    pools = _apart_pools(chosen) if isinstance(chosen, Apart) else _whole_pools(chosen)
    raw: dict[str, Json] = {
        "name": "baton",
        "model": {
            "path": model_path,
            "served_name": plan.demand.shape.name,
            "max_model_len": _model_length(plan),
        },
        "engine": {
            "kind": "vllm",
            "device": "gpu",
            "block_size": _BLOCK_TOKENS,
            "start_deadline_s": float(_START_DEADLINE_S),
            "options": _engine_options(plan.demand, quantization),
        },
        **pools,
        "router": _router(plan),
        "placement": _placement(plan),
        "security": {"allow_open": True},  # a plan knows neither keys nor certificates
    }
    if isinstance(chosen, Apart) and chosen.hand_over.stock:
        raw["kv_transfer"] = {"connector": "vllm-nixl"}
    return parse_config(raw, "the plan")


def _apart_pools(plan: Apart) -> dict[str, Json]:
    prefill, decode = plan.prefill, plan.decode
    return {
        "prefill": _pool(prefill.engine, "prefill", prefill.replicas, {"max_num_batched_tokens": prefill.times.chunk}),
        "decode": _pool(decode.engine, "decode", decode.replicas, {"max_num_seqs": decode.places}),
    }


def _whole_pools(plan: Whole) -> dict[str, Json]:
    whole, places = plan.pool.whole, plan.pool.whole.places
    options: dict[str, Json] = {"max_num_batched_tokens": whole.times.chunk + places, "max_num_seqs": places}
    return {
        "prefill": _pool(whole.engine, "prefill", 1, options),
        "decode": _pool(whole.engine, "decode", plan.pool.replicas, options),
    }


def _pool(engine: CostModel, role: str, replicas: int, options: dict[str, Json]) -> dict[str, Json]:
    gpus = engine.tensor_parallel
    return {
        "replicas": replicas,
        "cpus_per_replica": float(2 + 2 * gpus),  # the replica, the engine core, and a process for each GPU
        "gpus_per_replica": gpus,
        "accelerator_type": engine.hardware.accelerator_type,
        "resources": {f"baton_{role}": 1.0},
        "engine_options": options,
        "listen_host": "0.0.0.0",
    }


def _engine_options(demand: Demand, quantization: str | None) -> dict[str, Json]:
    options: dict[str, Json] = {"gpu_memory_utilization": demand.efficiency.usable_memory}
    if quantization is not None:
        options["quantization"] = quantization
    if demand.shape.precision.cache < 2.0:
        options["kv_cache_dtype"] = "fp8"
    return options


def _router(plan: Plan) -> dict[str, Json]:
    """One router: several share their state in a Redis of which a plan knows nothing."""
    pool = plan.chosen.decode if isinstance(plan.chosen, Apart) else plan.chosen.pool
    streams = pool.replicas * pool.running.quantile(0.999)
    return {
        "resources": {"baton_router": 1.0},
        "http_host": "0.0.0.0",
        "grpc_host": "0.0.0.0",
        "max_in_flight": max(_STREAMS_PER_ROUTER, 1 << math.ceil(math.log2(max(2 * streams, 1)))),
    }


def _placement(plan: Plan) -> dict[str, Json]:
    demand = plan.demand
    prefill, decode = _engines(plan)
    network = min(demand.network_of(prefill.hardware), demand.network_of(decode.hardware))
    each = network / max(prefill.kv_share, decode.kv_share)
    start = cold_start(prefill, decode, demand.workload.context, each, demand.setup_s)
    return {
        "disaggregate": "auto" if isinstance(plan.chosen, Apart) else "never",
        "expected_output_tokens": max(round(demand.workload.mean_output), 1),
        "start": {key: float(f"{value:.4g}") for key, value in start.model_dump().items()},
    }


def _model_length(plan: Plan) -> int:
    """What the longest request needs, rounded up while the cache can hold that: engines refuse to start with more."""
    demand = plan.demand
    exact = math.ceil(demand.workload.longest)
    rounded = math.ceil(exact / _LENGTH_STEP) * _LENGTH_STEP
    fits = all(engine.kv_bytes_each(rounded) <= engine.kv_room_each for engine in _engines(plan))
    return min(rounded if fits else exact, demand.shape.longest)


def _engines(plan: Plan) -> tuple[CostModel, CostModel]:
    """For prefill and for decode."""
    if isinstance(plan.chosen, Apart):
        return plan.chosen.prefill.engine, plan.chosen.decode.engine
    return plan.chosen.pool.whole.engine, plan.chosen.pool.whole.engine
