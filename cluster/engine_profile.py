"""What a running engine was measured to do, and the cost model's free figures fitted to it in place of guesses.

The fit is the least squares of the logarithms of times, over the very cost model that is used afterwards. What the
measurements do not tell apart stays near the guess. Pure but for `read_profile` and `write_profile`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from cluster.cost_model import CostModel
from cluster.errors import ConfigError
from cluster.hardware import GUESSED, Efficiency, Hardware
from cluster.model_shape import ModelShape

FORMAT = "baton/v1"
_KIND = "EngineProfile"
CPU = "CPU"
_PRIOR = 0.003  # of a figure's distance from the guess, beside 1 of each measurement's from the model
_ROUNDS, _HALVINGS = 40, 24
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_EDGE_S = 0.01


@dataclass(frozen=True, slots=True)
class PromptTime:
    """`seconds` to the first token of a prompt of `tokens` that nothing was cached of, on an idle engine."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """`seconds` between tokens, where `sequences` run in one engine, with `context` tokens each."""

    sequences: int
    context: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """`copy_bytes_per_s`: of KV blocks from worker to worker, one rank's; None where none moved."""

    prompts: tuple[PromptTime, ...]
    steps: tuple[StepTime, ...]
    copy_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """`edge_s`: what a request spends outside of the engine. `error`: by how much the fitted model misses a measured
    time, in the middle of the cases, as a share of it."""

    model: str
    tensor_parallel: int
    hardware: Hardware
    efficiency: Efficiency
    edge_s: float
    error: float
    measured: Measured


@dataclass(frozen=True, slots=True)
class _Figure:
    """One that is free: its guess, and between what it may lie."""

    guess: float
    least: float
    most: float


def cpu_hardware(memory_bytes: float) -> Hardware:
    """Where a fit for a CPU begins; nothing in it is known of any CPU."""
    return Hardware(CPU, 5e11, None, memory_bytes, 2e10, 1e10, "none", 1e9, 1.0, "", per_machine=1)


def fitted(shape: ModelShape, hardware: Hardware, tensor_parallel: int, measured: Measured) -> EngineProfile:
    """Raises `ConfigError` when there is too little to fit."""
    if len(measured.prompts) < 2 or not measured.steps:
        raise ConfigError("too little was measured: two lengths of prompts and one number of sequences are the least")
    share = _Figure(1.0, 1e-6, 1e6) if hardware.name == CPU else _Figure(GUESSED.compute, 1e-4, 1.0)
    read = _Figure(1.0, 1e-6, 1e6) if hardware.name == CPU else _Figure(GUESSED.memory, 1e-4, 1.0)
    figures = [share, read, _Figure(GUESSED.step_s, 1e-6, 10.0), _Figure(_EDGE_S, 1e-6, 10.0)]

    def missed(values: list[float]) -> list[float]:
        engine, edge_s = _engine(shape, hardware, tensor_parallel, values), values[3]
        prompts = [math.log((edge_s + engine.prefill_s(p.tokens)) / p.seconds) for p in measured.prompts]
        steps = [math.log(engine.decode_s(s.sequences, s.context) / s.seconds) for s in measured.steps]
        return prompts + steps

    def cost(values: list[float]) -> float:
        prior = sum(math.log(value / figure.guess) ** 2 for value, figure in zip(values, figures, strict=True))
        return sum(each * each for each in missed(values)) + _PRIOR * prior

    found = _least(cost, figures)
    engine = _engine(shape, hardware, tensor_parallel, found)
    kept, efficiency = hardware, engine.efficiency
    if measured.copy_bytes_per_s is not None:
        # Of the peak that this makes the model gets what was measured. The share itself is also that of the links
        # between the GPUs of one machine, of which nothing was measured.
        kept = replace(hardware, network=measured.copy_bytes_per_s / efficiency.link)
    if hardware.name == CPU:
        # What it does is all that is known of it: that is its peak, of which it gets everything.
        kept = replace(
            kept, flops=hardware.flops * efficiency.compute, bandwidth=hardware.bandwidth * efficiency.memory
        )
        efficiency = replace(efficiency, compute=1.0, memory=1.0, reserve_bytes=1e9)
    error = median(abs(math.expm1(each)) for each in missed(found))
    return EngineProfile(shape.name, tensor_parallel, kept, efficiency, found[3], error, measured)


def write_profile(profile: EngineProfile, path: Path) -> None:
    """Raises `OSError`."""
    path.write_text(yaml.safe_dump(profile_document(profile), sort_keys=False), encoding="utf-8")


def profile_document(profile: EngineProfile) -> dict[str, Any]:
    measured = profile.measured
    return {
        "apiVersion": FORMAT,
        "kind": _KIND,
        "model": profile.model,
        "tensorParallel": profile.tensor_parallel,
        "edgeS": profile.edge_s,
        "error": profile.error,
        "hardware": asdict(profile.hardware),
        "efficiency": asdict(profile.efficiency),
        "measured": {
            "prompts": [asdict(each) for each in measured.prompts],
            "steps": [asdict(each) for each in measured.steps],
            "copyBytesPerS": measured.copy_bytes_per_s,
        },
    }


def read_profile(path: Path) -> EngineProfile:
    """Raises `ConfigError`."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if raw["apiVersion"] != FORMAT or raw["kind"] != _KIND:
            raise ConfigError(f"{path}: is no {_KIND} of {FORMAT}; `baton profile` writes one")
        measured = raw["measured"]
        profile = EngineProfile(
            model=str(raw["model"]),
            tensor_parallel=int(raw["tensorParallel"]),
            hardware=Hardware(**raw["hardware"]),
            efficiency=Efficiency(**raw["efficiency"]),
            edge_s=float(raw["edgeS"]),
            error=float(raw["error"]),
            measured=Measured(
                tuple(PromptTime(**each) for each in measured["prompts"]),
                tuple(StepTime(**each) for each in measured["steps"]),
                measured["copyBytesPerS"],
            ),
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is no profile that `baton profile` wrote: {error!r}") from error
    _check_figures(path, profile)
    return profile


def _check_figures(path: Path, profile: EngineProfile) -> None:
    """Zeros and infinities would make plans of nothing."""
    figures = {"flops": profile.hardware.flops, "memory": profile.hardware.memory, "edgeS": profile.edge_s}
    figures |= {"bandwidth": profile.hardware.bandwidth, "network": profile.hardware.network}
    shares = {each.name: getattr(profile.efficiency, each.name) for each in fields(Efficiency)}
    for name, value in figures.items():
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ConfigError(f"{path}: {name} is {value}: must be above 0")
    for name, value in shares.items():
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise ConfigError(f"{path}: efficiency {name} is {value}: must be at least 0")


def _engine(shape: ModelShape, hardware: Hardware, tensor_parallel: int, values: list[float]) -> CostModel:
    compute, memory, step_s, _ = values
    own = {"layer_s": 0.0} if hardware.name == CPU else {}
    efficiency = replace(GUESSED, compute=compute, memory=memory, step_s=step_s, **own)
    return CostModel(shape, hardware, tensor_parallel, efficiency)


def _least(cost: Callable[[list[float]], float], figures: list[_Figure]) -> list[float]:
    """One figure after the other, each along its logarithm, until nothing moves."""
    values = [figure.guess for figure in figures]
    for _ in range(_ROUNDS):
        before = list(values)
        for at, figure in enumerate(figures):
            values[at] = _along(cost, values, at, figure)
        if all(abs(math.log(new / old)) < 1e-4 for new, old in zip(values, before, strict=True)):
            break
    return values


def _along(cost: Callable[[list[float]], float], values: list[float], at: int, figure: _Figure) -> float:
    """Golden section: the cost has one valley along one figure, for each time grows or falls with it throughout."""

    def cost_at(log_value: float) -> float:
        return cost([*values[:at], math.exp(log_value), *values[at + 1 :]])

    low, high = math.log(figure.least), math.log(figure.most)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost_at(left), cost_at(right)
    for _ in range(_HALVINGS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = cost_at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = cost_at(right)
    return math.exp((low + high) / 2.0)
