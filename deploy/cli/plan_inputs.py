"""What the options of `baton plan` ask for, as a `Demand`: names looked up, files read, what was not said assumed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.engine_profile import CPU, EngineProfile, read_profile
from cluster.errors import ConfigError
from cluster.hardware import Hardware, hardware
from cluster.model_config import model_shape
from cluster.model_shape import ModelShape
from deploy.planning.demand import Demand, Goals
from deploy.planning.trace import read_trace, recorded_workload
from deploy.planning.workload import Workload, drawn_workload, spread_lengths

_MOST_PERCENTILE = 99.0  # lengths are known to a sixty-fourth
_SPREAD = 2.5  # 95th percentile over the mean, where it is not said


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """As given on the command line; None where not given. `network` in GB/s, `percentile` in percent."""

    model: str
    hardware: str
    ttft: float
    itl: float
    prefill_hardware: str | None = None
    decode_hardware: str | None = None
    trace: Path | None = None
    rate: float | None = None
    prompt_tokens: float | None = None
    prompt_p95: float | None = None
    output_tokens: float | None = None
    output_p95: float | None = None
    prefix_hits: float | None = None
    percentile: float = 95.0
    network: float | None = None
    weights: str | None = None
    kv_cache: str = "bf16"
    prices: tuple[str, ...] = ()
    max_gpus: int | None = None
    unequal_split: bool = False
    profile: Path | None = None


def asked_profile(options: PlanOptions) -> EngineProfile | None:
    """Read once: the file may be a pipe. Raises `ConfigError`."""
    return None if options.profile is None else read_profile(options.profile)


def read_demand(options: PlanOptions, profile: EngineProfile | None) -> Demand:
    """Raises `ConfigError` that names the option, or what is not known."""
    _check_numbers(options)
    shape = model_shape(options.model, options.weights)
    if options.kv_cache == "fp8":
        shape = replace(shape, precision=replace(shape.precision, cache=1.0))
    names = [options.prefill_hardware or options.hardware, options.decode_hardware or options.hardware]
    prefill, decode = map(hardware, names) if profile is None else (_profiled(options, profile, name) for name in names)
    prices = _prices(options.prices)
    demand = Demand(
        shape=shape,
        workload=_traced(options, shape) if options.trace else _described(options, shape),
        goals=Goals(options.ttft, options.itl, options.percentile / 100.0),
        prefill=_priced(prefill, prices),
        decode=_priced(decode, prices),
        network=None if options.network is None else options.network * 1e9,
        unequal_split=options.unequal_split,
    )
    if profile is not None:
        demand = replace(demand, efficiency=profile.efficiency, edge_s=profile.edge_s)
    return demand if options.max_gpus is None else replace(demand, most_gpus=options.max_gpus)


def _profiled(options: PlanOptions, profile: EngineProfile, name: str) -> Hardware:
    if name.upper() != profile.hardware.name.upper():
        raise ConfigError(f"--profile {options.profile}: was measured on {profile.hardware.name}, not on {name}")
    return profile.hardware


def _check_numbers(options: PlanOptions) -> None:
    """The command line takes `nan` and `inf` for numbers."""
    positive = {
        "--ttft": options.ttft, "--itl": options.itl, "--rate": options.rate, "--network": options.network,
        "--prompt-tokens": options.prompt_tokens, "--prompt-p95": options.prompt_p95,
        "--output-tokens": options.output_tokens, "--output-p95": options.output_p95,
    }  # fmt: skip
    for name, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} {value:g}: must be above 0")
    if not 0 < options.percentile <= _MOST_PERCENTILE:
        raise ConfigError(f"--percentile {options.percentile:g}: must be above 0, at most {_MOST_PERCENTILE:g}")
    if options.prefix_hits is not None and not 0 <= options.prefix_hits <= 1:
        raise ConfigError(f"--prefix-hits {options.prefix_hits:g}: a share, from 0 to 1")


def _traced(options: PlanOptions, shape: ModelShape) -> Workload:
    lengths = {
        "--prompt-tokens": options.prompt_tokens, "--prompt-p95": options.prompt_p95,
        "--output-tokens": options.output_tokens, "--output-p95": options.output_p95,
    }  # fmt: skip
    given = [name for name, value in lengths.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: the lengths come from --trace; leave one of them out")
    assert options.trace is not None
    return recorded_workload(read_trace(options.trace), shape.longest, options.rate, options.prefix_hits)


def _described(options: PlanOptions, shape: ModelShape) -> Workload:
    if options.rate is None or options.prompt_tokens is None or options.output_tokens is None:
        raise ConfigError("what is the load? name --rate, --prompt-tokens and --output-tokens, or --trace FILE")
    assumed: list[str] = []
    prompts = _lengths("prompt", options.prompt_tokens, options.prompt_p95, assumed)
    outputs = _lengths("output", options.output_tokens, options.output_p95, assumed)
    if options.prompt_tokens + options.output_tokens > shape.longest:
        total = options.prompt_tokens + options.output_tokens
        raise ConfigError(f"requests of {total:,.0f} tokens: {shape.name} takes {shape.longest:,}")
    if prompts[-1] + outputs[-1] > shape.longest:
        # Each keeps its part of what the model takes, and never less than its mean.
        most = shape.longest * options.prompt_tokens / (options.prompt_tokens + options.output_tokens)
        prompts = tuple(min(each, most) for each in prompts)
        outputs = tuple(min(each, shape.longest - most) for each in outputs)
        assumed.append(f"prompts and outputs are cut to the {shape.longest:,} tokens that the model takes")
    if options.prefix_hits is None:
        assumed.append("no prompt is found in a cache (--prefix-hits)")
    return drawn_workload(options.rate, prompts, outputs, options.prefix_hits or 0.0, tuple(assumed))


def _lengths(name: str, mean: float, p95: float | None, assumed: list[str]) -> tuple[float, ...]:
    if p95 is None:
        p95 = _SPREAD * mean
        assumed.append(f"the 95th percentile of {name} tokens is {_SPREAD:g} times their mean (--{name}-p95)")
    try:
        return spread_lengths(mean, p95)
    except ConfigError as error:
        raise ConfigError(f"--{name}-p95: {error}") from error


def _prices(texts: tuple[str, ...]) -> dict[str, float]:
    """By hardware; under the empty name for all."""
    prices: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not 0 < price < math.inf:
            raise ConfigError(f"--price {text}: expected US dollars an hour, as 2.5 or H100=2.5")
        prices[_price_key(name)] = price
    return prices


def _price_key(name: str) -> str:
    if name.upper() == CPU:
        return CPU
    return hardware(name).name if name else ""


def _priced(kind: Hardware, prices: dict[str, float]) -> Hardware:
    price = prices.get(kind.name, prices.get(""))
    return kind if price is None else replace(kind, price=price)


def assumptions(options: PlanOptions, profile: EngineProfile | None, demand: Demand) -> list[str]:
    """What was not said: of the load, of prices, and of what hardware can do."""
    figures = _figures_from(options, profile, demand.shape.name)
    return [*demand.workload.assumed, *_price_assumptions(options, demand), figures]


def _price_assumptions(options: PlanOptions, demand: Demand) -> Iterator[str]:
    said = _prices(options.prices)
    for kind in {each.name: each for each in (demand.prefill, demand.decode)}.values():
        if kind.name in said or "" in said:
            continue
        if kind.name == CPU:
            yield f"a machine of CPUs costs ${kind.price:g} an hour: nothing is known of its price (--price)"
        else:
            yield f"a GPU of {kind.name} costs ${kind.price:g} an hour, about what clouds ask for on demand (--price)"


def _figures_from(options: PlanOptions, profile: EngineProfile | None, model: str) -> str:
    """Where it comes from what hardware can do. `model`: the name of the one that is planned for."""
    if profile is None:
        return "efficiencies are guesses: nothing was measured on this hardware (`baton profile`)"
    measured = f"{profile.model} on {profile.hardware.name}, {profile.tensor_parallel} together"
    other = "" if profile.model == model else f"; {model} may differ, as its weights are read in another time"
    return f"times are those of {options.profile}: {measured}, missed by {profile.error:.1%} in the middle{other}"
