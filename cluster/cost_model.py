"""What one step of an engine costs: seconds of each part, and whether computing, memory or the interconnect binds it.

A step is a roofline (Williams et al., CACM 52(4), 2009) over its parts: each takes the longer of its operations over
the accelerator's speed and its bytes over the memory's bandwidth; then what tensor parallelism exchanges, and what each
step costs. It must not know queues or workloads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from cluster.hardware import GUESSED, Efficiency, Hardware
from cluster.model_shape import GroupedAttention, ModelShape
from cluster.model_size import kv_bytes, weight_bytes
from cluster.step_work import Chunk, Step, Work, attention_work, experts_work, head_work, layers_work

_ACTIVATION_BYTES = 2.0


class Bound(StrEnum):
    COMPUTE = "compute"
    MEMORY = "memory"
    INTERCONNECT = "interconnect"
    OVERHEAD = "overhead"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a step on one accelerator. `size_bytes` go through its memory, or through its links."""

    name: str
    flops: float
    size_bytes: float
    seconds: float
    bound: Bound

    @property
    def intensity(self) -> float:
        """Operations for each byte; infinite where nothing is read."""
        return self.flops / self.size_bytes if self.size_bytes else math.inf


@dataclass(frozen=True, slots=True)
class StepCost:
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def bound(self) -> Bound:
        """What most of the time goes to."""
        return max(Bound, key=self.seconds_bound_by)

    def seconds_bound_by(self, bound: Bound) -> float:
        return sum(part.seconds for part in self.parts if part.bound is bound)


@dataclass(frozen=True, slots=True)
class CostModel:
    """One engine: a model on `tensor_parallel` accelerators of one kind in one machine."""

    shape: ModelShape
    hardware: Hardware
    tensor_parallel: int = 1
    efficiency: Efficiency = GUESSED

    # Memory

    @property
    def weight_bytes_each(self) -> float:
        """On one accelerator."""
        return weight_bytes(self.shape) / self.tensor_parallel

    @property
    def kv_room_each(self) -> float:
        """Bytes left for the KV cache on one accelerator; below 0 where the weights do not fit."""
        usable = self.hardware.memory * self.efficiency.usable_memory - self.efficiency.reserve_bytes
        return usable - self.weight_bytes_each

    def kv_bytes_each(self, tokens: float) -> float:
        """Of one sequence, on one accelerator."""
        return kv_bytes(self.shape, tokens) * self.kv_share

    @property
    def kv_share(self) -> float:
        """Of a token's cache, how much each accelerator holds: heads are dealt out, and copied where there are fewer
        than accelerators; what latent attention caches belongs to all heads, so each accelerator has all of it."""
        attention = self.shape.layers[0].attention
        return 1.0 / min(self.tensor_parallel, attention.kv_heads) if isinstance(attention, GroupedAttention) else 1.0

    # Time

    def step(self, step: Step) -> StepCost:
        fp8 = self.hardware.fp8_flops if self.shape.precision.fp8 else None
        matrix, other, share = fp8 or self.hardware.flops, self.hardware.flops, 1.0 / self.tensor_parallel
        return StepCost(
            (
                self._roofline("layers", layers_work(self.shape, step), matrix, share),
                self._roofline("experts", experts_work(self.shape, step), matrix, share),
                self._roofline("attention", attention_work(self.shape, step), other, self.kv_share),
                self._roofline("output head", head_work(self.shape, step), other, share),
                self._exchange(step),
                self._overhead(),
            )
        )

    def prefill_s(self, tokens: float, context: float = 0.0) -> float:
        """One step that computes `tokens` of a prompt and nothing else."""
        return self.step(Step(Chunk(tokens, context))).seconds

    def decode_s(self, sequences: float, context: float) -> float:
        """One step that adds a token to each of `sequences`."""
        return self.step(Step(sequences=sequences, context=context)).seconds

    def _roofline(self, name: str, work: Work, peak: float, share: float) -> Part:
        """`share`: of the bytes, what goes through one accelerator's memory; operations are always dealt out."""
        flops, size_bytes = work.flops / self.tensor_parallel, work.size_bytes * share
        compute_s = flops / (peak * self.efficiency.compute)
        memory_s = size_bytes / (self.hardware.bandwidth * self.efficiency.memory)
        bound = Bound.COMPUTE if compute_s > memory_s else Bound.MEMORY
        seconds = max(compute_s, memory_s) + (1.0 - self.efficiency.overlap) * min(compute_s, memory_s)
        return Part(name, flops, size_bytes, seconds, bound)

    def _exchange(self, step: Step) -> Part:
        """Two all-reduces in each layer, of a hidden vector for each token (Shoeybi et al., "Megatron-LM",
        arXiv:1909.08053). A ring sends 2 (n-1)/n of the bytes over each link (Patarasuk and Yuan, JPDC 69(2), 2009)."""
        accelerators = self.tensor_parallel
        if accelerators == 1:
            return Part("all-reduce", 0.0, 0.0, 0.0, Bound.INTERCONNECT)
        reduces = 2 * self.shape.layer_count
        vector = step.tokens * self.shape.hidden * _ACTIVATION_BYTES
        sent = reduces * vector * 2.0 * (accelerators - 1) / accelerators
        seconds = sent / (self.hardware.link * self.efficiency.link) + reduces * self.efficiency.reduce_s
        return Part("all-reduce", 0.0, sent, seconds, Bound.INTERCONNECT)

    def _overhead(self) -> Part:
        seconds = self.efficiency.step_s + self.shape.layer_count * self.efficiency.layer_s
        return Part("overhead", 0.0, 0.0, seconds, Bound.OVERHEAD)
