"""What placement assumes of a pool before anything is measured there: the cost model's times, as the few figures that a
router learns further.

The configuration's own figures come first, then an engine's profile, then the hardware table. Where none of them says
anything (a CPU without a profile, a family of models that is not known), the defaults of `LatencyStart` stand. It must
not know how figures are learnt. Pure but for reading the model's configuration and the profile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.cold_start import Ends, cold_start
from cluster.config import Config, PoolConfig
from cluster.config_placement import LatencyStart
from cluster.cost_model import CostModel
from cluster.engine import Role
from cluster.engine_profile import CPU, EngineProfile, read_profile
from cluster.errors import ConfigError
from cluster.hardware import HARDWARE
from cluster.model_config import model_shape
from cluster.model_shape import ModelShape
from cluster.model_size import kv_bytes_per_token

logger = logging.getLogger(__name__)

_ENDS = Ends(prompts=(512, 2_048), sequences=(1, 33))  # beyond, attention grows, which is learnt
_CONTEXT = 1_024  # tokens of each


@dataclass(frozen=True, slots=True)
class FirstGuess:
    """`starts`: of each pool. `block_bytes`: of a block's KV in all layers and ranks; None where the model's family is
    not known."""

    starts: Mapping[Role, LatencyStart]
    block_bytes: int | None


def first_guess(config: Config) -> FirstGuess:
    """Raises `ConfigError`: a profile that cannot be read, or that is not of this model."""
    profile = None if config.placement.profile is None else read_profile(Path(config.placement.profile))
    shape = _shape(config.model.path)
    if profile is not None and shape is not None and profile.model != shape.name:
        raise ConfigError(
            f"placement.profile: {config.placement.profile} is of the model {profile.model}, not of {shape.name}; "
            "measure this one with `baton profile`"
        )
    return FirstGuess(
        {role: _start(config, config.pool(role), shape, profile) for role in Role},
        None if shape is None else round(kv_bytes_per_token(shape) * config.engine.block_size),
    )


def linear_start(engine: CostModel, edge_s: float = 0.0) -> LatencyStart:
    """The cost model's times along two straight lines, over prompt tokens and over running sequences. `edge_s`: what a
    request spends outside of the engine."""
    network = engine.hardware.network * engine.efficiency.link / engine.kv_share  # each GPU moves its own part
    return cold_start(engine, engine, _CONTEXT, network, LatencyStart().transfer_s, _ENDS, edge_s)


def _start(config: Config, pool: PoolConfig, shape: ModelShape | None, profile: EngineProfile | None) -> LatencyStart:
    tensor_parallel = max(1, pool.gpus_per_replica)
    if "start" in config.placement.model_fields_set or shape is None or config.engine.kind == "simulated":
        return config.placement.start
    if profile is not None and _speaks_of(profile, pool):
        return linear_start(CostModel(shape, profile.hardware, tensor_parallel, profile.efficiency), profile.edge_s)
    known = next((each for each in HARDWARE.values() if each.accelerator_type == pool.accelerator_type), None)
    return config.placement.start if known is None else linear_start(CostModel(shape, known, tensor_parallel))


def _speaks_of(profile: EngineProfile, pool: PoolConfig) -> bool:
    """Of a pool that names no accelerator, any accelerator's does where it has some, and a CPU's where it has none."""
    if pool.accelerator_type:
        return profile.hardware.accelerator_type == pool.accelerator_type
    return (profile.hardware.name == CPU) == (pool.gpus_per_replica == 0)


def _shape(path: str) -> ModelShape | None:
    try:
        return model_shape(path)
    except ConfigError as error:
        logger.info("placement starts from the defaults: %s", error)
        return None
