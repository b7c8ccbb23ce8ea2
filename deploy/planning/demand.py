"""What a plan is made for, and what is said when there is none: goals, hardware, and the bound that fails."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.cost_model import CostModel
from cluster.hardware import GUESSED, Efficiency, Hardware
from cluster.model_shape import ModelShape
from cluster.tensor_parallelism import tensor_parallel_sizes
from deploy.planning.workload import Workload


@dataclass(frozen=True, slots=True)
class Goals:
    """In the share `share` of all cases, the first token comes within `ttft_s` seconds of the request, and each later
    one within `itl_s` of the one before it."""

    ttft_s: float
    itl_s: float
    share: float = 0.95


@dataclass(frozen=True, slots=True)
class Demand:
    """`network`: bytes a second that each GPU can send to, or get from, another machine; None: as its hardware says.
    `most_gpus`: no plan takes more. `edge_s`: what a request spends outside of workers; `setup_s`: what a transfer
    takes however small it is. `most_full`: how often a new sequence may find an engine full; `most_busy`: the share of
    its time that a worker may spend on prompts, so that a guess or a busy hour does not end the plan. `unequal_split`:
    pools may differ in tensor parallelism, which takes vLLM's own connector."""

    shape: ModelShape
    workload: Workload
    goals: Goals
    prefill: Hardware
    decode: Hardware
    network: float | None = None
    efficiency: Efficiency = GUESSED
    most_gpus: int = 10_000
    edge_s: float = 0.01
    setup_s: float = 0.005
    most_full: float = 0.01
    most_busy: float = 0.9
    unequal_split: bool = False

    def engines(self, hardware: Hardware) -> list[CostModel]:
        """The model on one worker of this hardware, in each way it can be split."""
        sizes = tensor_parallel_sizes(self.shape, hardware)
        return [CostModel(self.shape, hardware, size, self.efficiency) for size in sizes]

    def network_of(self, hardware: Hardware) -> float:
        """Bytes a second that one GPU gets through it."""
        return (hardware.network if self.network is None else self.network) * self.efficiency.link


class Limit(StrEnum):
    WEIGHTS = "weights"
    CACHE = "cache"
    TTFT = "ttft"
    ITL = "itl"
    NETWORK = "network"
    GPUS = "gpus"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A bound that no plan keeps: the least that is `needed` in any, what is `allowed`, and the whole sentence."""

    limit: Limit
    needed: float
    allowed: float
    text: str

    @property
    def excess(self) -> float:
        """How far above what is allowed, as a share of it."""
        return self.needed / self.allowed - 1.0 if self.allowed > 0 else float("inf")
