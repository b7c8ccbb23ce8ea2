"""Demands for tests: small enough to plan in milliseconds, and changed in one place at a time."""

from __future__ import annotations

from dataclasses import replace

from cluster.hardware import Hardware, hardware
from cluster.model_config import model_shape
from deploy.planning.demand import Demand, Goals
from deploy.planning.workload import drawn_workload, spread_lengths


def single(gpu: str = "h100") -> Hardware:
    """A machine of one such GPU: one way to split a model, so plans are quick."""
    return replace(hardware(gpu), per_machine=1)


def demand(
    rate: float = 20.0,
    *,
    model: str = "llama-3.1-8b",
    gpu: Hardware | None = None,
    tokens: tuple[float, float] = (2_000, 200),
    goals: tuple[float, float] = (1.0, 0.03),
    network: float | None = None,
) -> Demand:
    """`tokens`: mean prompt and output; `goals`: TTFT and ITL in seconds; `network`: bytes a second."""
    prompts, outputs = (spread_lengths(mean, 2.0 * mean) for mean in tokens)
    workload = drawn_workload(rate, prompts, outputs, 0.0, ())
    kind = gpu or single()
    return Demand(model_shape(model), workload, Goals(*goals), kind, kind, network=network)
