"""What is to be measured: which model on which hardware a cluster runs, by its own configuration unless named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.config import Config
from cluster.engine_profile import CPU, cpu_hardware
from cluster.errors import ConfigError
from cluster.hardware import Hardware
from cluster.hardware import hardware as known_hardware
from cluster.model_config import model_shape
from cluster.model_shape import ModelShape
from deploy.cli.config_reading import live_config
from deploy.cli.status_command import ask_status
from deploy.profiling.lengths import LEAST_LONGEST, SHORTEST_PROMPT
from deploy.profiling.measure import Schedule

_MOST_IDS = 32_000
_OUTPUT = 64
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Target:
    """`engines`: decode workers that are ready. `vocabulary`: token ids are below. `longest`: prompt and output,
    tokens."""

    shape: ModelShape
    hardware: Hardware
    tensor_parallel: int
    engines: int
    in_flight: int
    vocabulary: int
    longest: int


def target(endpoint: str, timeout_s: float, model: str | None, hardware: str | None) -> Target:
    """Raises `Stop`; `ConfigError` for a model or hardware that is not known."""
    config = live_config(endpoint, timeout_s)
    status = ask_status(endpoint, timeout_s)
    shape = model_shape(model or config.model.path, None)
    simulated = config.engine.kind == "simulated"
    vocabulary = config.engine.simulated.vocabulary if simulated else shape.vocabulary
    return Target(
        shape=shape,
        hardware=_hardware(config, hardware),
        tensor_parallel=max(1, config.decode.gpus_per_replica),
        engines=max(1, sum(pool.ready for pool in status.pools if pool.pool == "decode")),
        in_flight=status.router.in_flight,
        vocabulary=min(vocabulary, shape.vocabulary, _MOST_IDS),
        longest=min([shape.longest, *(worker.max_model_len for worker in status.workers if worker.max_model_len)]),
    )


def schedule(found: Target, longest: int, most: int, repeats: int, call_s: float) -> Schedule:
    """Lengths and batches double, up to the given ones and what the model takes."""
    most_tokens = min(longest, found.longest - _OUTPUT)
    if most_tokens < LEAST_LONGEST:
        raise ConfigError(f"the model takes {found.longest} tokens: too few to measure prompts of several lengths")
    lengths = tuple(_doubling(SHORTEST_PROMPT, most_tokens))
    batches = tuple(_doubling(1, most))
    return Schedule(lengths, batches, repeats, _OUTPUT, found.vocabulary, found.tensor_parallel, call_s)


def _hardware(config: Config, name: str | None) -> Hardware:
    asked = name or (config.decode.accelerator_type if config.engine.device == "gpu" else CPU)
    if asked is None:
        raise ConfigError("which GPU is it? name --hardware, or decode.accelerator_type in the configuration")
    if asked.upper() == CPU:
        return cpu_hardware(_memory_bytes())
    return known_hardware(asked)


def _memory_bytes() -> float:
    """Of this machine."""
    first = _MEMORY.read_text().splitlines()[0]
    return float(first.split()[1]) * 1024.0


def _doubling(first: int, last: int) -> list[int]:
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return found
