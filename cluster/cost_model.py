"""What one step of an engine costs: operations, bytes, seconds, and which of them binds.

A step is a roofline (Williams et al., CACM 52(4), 2009) over its parts: each takes the longer of its operations over
the accelerator's speed and its bytes over the memory's bandwidth; then what tensor parallelism exchanges, and what each
step costs. Reading and writing activations is left to the efficiency. It must not know queues or workloads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from cluster.hardware import GUESSED, Efficiency, Hardware
from cluster.model_shape import ExpertForward, GroupedAttention, LayerGroup, ModelShape
from cluster.model_size import (
    attention_matrices,
    expert_parameters,
    kv_bytes,
    layer_kv_bytes,
    layer_weight_bytes,
    shared_matrices,
    weight_bytes,
)

_ACTIVATION_BYTES = 2.0


class Bound(StrEnum):
    COMPUTE = "compute"
    MEMORY = "memory"
    INTERCONNECT = "interconnect"
    OVERHEAD = "overhead"


@dataclass(frozen=True, slots=True)
class Chunk:
    """`tokens` of each of `prompts` computed in one step, after `context` tokens of each that are in the cache."""

    tokens: float
    context: float = 0.0
    prompts: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """A chunk of prompts, and one token for each of `sequences`, with `context` tokens before it on average."""

    chunk: Chunk = Chunk(0.0)
    sequences: float = 0.0
    context: float = 0.0

    @property
    def tokens(self) -> float:
        return self.chunk.tokens * self.chunk.prompts + self.sequences


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
        work = [self._layers_work(step), self._experts_work(step), self._attention_work(step), self._head_work(step)]
        parts = [self._roofline(*each) for each in work]
        return StepCost((*parts, self._exchange(step), self._overhead()))

    def prefill_s(self, tokens: float, context: float = 0.0) -> float:
        """One step that computes `tokens` of a prompt and nothing else."""
        return self.step(Step(Chunk(tokens, context))).seconds

    def decode_s(self, sequences: float, context: float) -> float:
        """One step that adds a token to each of `sequences`."""
        return self.step(Step(sequences=sequences, context=context)).seconds

    # Work of each part: name, operations and bytes of the whole model, operations a second, share of bytes on each

    def _layers_work(self, step: Step) -> tuple[str, float, float, float, float]:
        """Two operations for each parameter and token (Kaplan et al., arXiv:2001.08361, section 2.1); all of the
        weights are read once, however many tokens there are."""
        weights = sum(group.count * _shared_parameters(group, self.shape.hidden) for group in self.shape.layers)
        routed = self._routed(experts=None)
        read = layer_weight_bytes(self.shape) - routed * self.shape.precision.expert
        return "layers", 2.0 * weights * step.tokens, read, self._matrix_flops, 1.0 / self.tensor_parallel

    def _experts_work(self, step: Step) -> tuple[str, float, float, float, float]:
        """Each token passes its chosen experts. Where tokens choose independently and evenly, n of them touch
        E (1 - (1 - k/E)^n) of E experts, each choosing k: those are read."""
        read = self._routed(experts=step.tokens) * self.shape.precision.expert
        passed = sum(
            group.count * group.forward.chosen * expert_parameters(group.forward, self.shape.hidden)
            for group in self.shape.layers
            if isinstance(group.forward, ExpertForward)
        )
        return "experts", 2.0 * passed * step.tokens, read, self._matrix_flops, 1.0 / self.tensor_parallel

    def _attention_work(self, step: Step) -> tuple[str, float, float, float, float]:
        """4NH operations for each pair of tokens, two for the score and two for the value (Austin et al., "How to Scale
        Your Model", 2025). Latent attention decodes on what is cached, 2N(2 kv_rank + rope) a pair, and prefills on
        rebuilt heads, 2N(key + value) a pair (arXiv:2405.04434, section 2.1.2)."""
        flops = moved = 0.0
        for group in self.shape.layers:
            chunk, each = step.chunk, layer_kv_bytes(group, self.shape)
            attended = group.attended(step.context + 1.0)
            flops += group.count * _prefill_pair_flops(group) * chunk.prompts * _pairs(chunk, group.window)
            flops += group.count * _decode_pair_flops(group) * step.sequences * attended
            read = step.sequences * attended
            if chunk.tokens:
                read += chunk.prompts * group.attended(chunk.context)
            moved += group.count * each * (read + step.tokens)
        # Operations are dealt out by query heads, bytes by key and value heads.
        return "attention", flops, moved, self.hardware.flops, self.kv_share

    def _head_work(self, step: Step) -> tuple[str, float, float, float, float]:
        """The output head computes one position of each sequence, and of each prompt."""
        numbers = float(self.shape.vocabulary * self.shape.hidden)
        positions = step.sequences + (step.chunk.prompts if step.chunk.tokens else 0.0)
        flops, read = 2.0 * numbers * positions, 2.0 * numbers
        return "output head", flops, read, self.hardware.flops, 1.0 / self.tensor_parallel

    def _roofline(self, name: str, flops: float, size_bytes: float, peak: float, share: float) -> Part:
        each_flops, each_bytes = flops / self.tensor_parallel, size_bytes * share
        compute_s = each_flops / (peak * self.efficiency.compute)
        memory_s = each_bytes / (self.hardware.bandwidth * self.efficiency.memory)
        bound = Bound.COMPUTE if compute_s > memory_s else Bound.MEMORY
        seconds = max(compute_s, memory_s) + (1.0 - self.efficiency.overlap) * min(compute_s, memory_s)
        return Part(name, each_flops, each_bytes, seconds, bound)

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

    @property
    def _matrix_flops(self) -> float:
        fp8 = self.hardware.fp8_flops if self.shape.precision.fp8 else None
        return fp8 or self.hardware.flops

    def _routed(self, experts: float | None) -> float:
        """Parameters of routed experts: of those that so many tokens touch, or of all."""
        return sum(
            group.count * _touched(group.forward, experts) * expert_parameters(group.forward, self.shape.hidden)
            for group in self.shape.layers
            if isinstance(group.forward, ExpertForward)
        )


def _touched(forward: ExpertForward, tokens: float | None) -> float:
    if tokens is None:
        return float(forward.experts)
    return forward.experts * (1.0 - (1.0 - forward.chosen / forward.experts) ** tokens)


def _shared_parameters(group: LayerGroup, hidden: int) -> int:
    return attention_matrices(group.attention, hidden) + shared_matrices(group.forward, hidden)


def _pairs(chunk: Chunk, window: int | None) -> float:
    """Pairs of tokens that attend to each other: each of n new ones to all before it, to itself, and to no more than
    the window."""
    first, last = chunk.context + 1.0, chunk.context + chunk.tokens
    if window is None or last <= window:
        return chunk.tokens * (first + last) / 2.0
    if first >= window:
        return chunk.tokens * window
    growing = window - chunk.context
    return growing * (first + window) / 2.0 + (chunk.tokens - growing) * window


def _prefill_pair_flops(group: LayerGroup) -> float:
    attention = group.attention
    if isinstance(attention, GroupedAttention):
        return 4.0 * attention.heads * attention.head_size
    return 2.0 * attention.heads * (attention.key_size + attention.value_size)


def _decode_pair_flops(group: LayerGroup) -> float:
    attention = group.attention
    if isinstance(attention, GroupedAttention):
        return 4.0 * attention.heads * attention.head_size
    return 2.0 * attention.heads * (attention.cached + attention.kv_rank)
