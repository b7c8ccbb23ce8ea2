"""What one step of an engine has to do: operations and bytes of each part of the model, whatever it runs on.

Reading and writing activations is left out: it goes with the operations. It must not know hardware or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cluster.model_shape import ExpertForward, GroupedAttention, LayerGroup, ModelShape
from cluster.model_size import (
    HEAD_BYTES,
    attention_matrices,
    expert_parameters,
    layer_kv_bytes,
    layer_weight_bytes,
    shared_matrices,
)


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
class Work:
    flops: float
    size_bytes: float


def layers_work(shape: ModelShape, step: Step) -> Work:
    """Two operations for each parameter and token (Kaplan et al., arXiv:2001.08361, section 2.1); the weights are read
    once, however many tokens there are. Without routed experts."""
    totals = _totals(shape)
    return Work(2.0 * totals.shared * step.tokens, totals.shared_bytes)


def experts_work(shape: ModelShape, step: Step) -> Work:
    """Each token passes its chosen experts. Where tokens choose independently and evenly, k of E each, n of them touch
    E (1 - (1 - k/E)^n): those are read."""
    flops = read = 0.0
    for group in _totals(shape).sparse:
        forward = group.forward
        touched = forward.experts * (1.0 - (1.0 - forward.chosen / forward.experts) ** step.tokens)
        flops += 2.0 * group.expert * forward.chosen * step.tokens
        read += group.expert * touched * shape.precision.expert
    return Work(flops, read)


def attention_work(shape: ModelShape, step: Step) -> Work:
    """4NH operations for each pair of tokens, two for the score and two for the value (Austin et al., "How to Scale
    Your Model", 2025). Latent attention decodes on what is cached, 2N(2 kv_rank + rope) a pair, and prefills on rebuilt
    heads, 2N(key + value) a pair (arXiv:2405.04434, section 2.1.2). The cache is read and what is new written."""
    flops = moved = 0.0
    chunk = step.chunk
    for group in shape.layers:
        attended = step.sequences * group.attended(step.context + 1.0)
        flops += group.count * _prefill_pair_flops(group) * chunk.prompts * _pairs(chunk, group.window)
        flops += group.count * _decode_pair_flops(group) * attended
        read = chunk.prompts * group.attended(chunk.context) if chunk.tokens else 0.0
        moved += group.count * layer_kv_bytes(group, shape) * (read + attended + step.tokens)
    return Work(flops, moved)


def head_work(shape: ModelShape, step: Step) -> Work:
    """The output head computes one position of each sequence, and of each prompt."""
    numbers = float(shape.vocabulary * shape.hidden)
    positions = step.sequences + (step.chunk.prompts if step.chunk.tokens else 0.0)
    return Work(2.0 * numbers * positions, HEAD_BYTES * numbers)


@dataclass(frozen=True, slots=True)
class _SparseGroup:
    """`expert`: parameters of one expert in all layers of the group."""

    forward: ExpertForward
    expert: float


@dataclass(frozen=True, slots=True)
class _Totals:
    """`shared`: parameters of matrices that every token passes; `shared_bytes`: of all that is no routed expert."""

    shared: float
    shared_bytes: float
    sparse: tuple[_SparseGroup, ...]


@lru_cache(maxsize=64)
def _totals(shape: ModelShape) -> _Totals:
    sparse = tuple(
        _SparseGroup(group.forward, float(group.count * expert_parameters(group.forward, shape.hidden)))
        for group in shape.layers
        if isinstance(group.forward, ExpertForward)
    )
    shared = sum(
        group.count * (attention_matrices(group.attention, shape.hidden) + shared_matrices(group.forward, shape.hidden))
        for group in shape.layers
    )
    routed = sum(group.expert * group.forward.experts for group in sparse)
    return _Totals(float(shared), layer_weight_bytes(shape) - routed * shape.precision.expert, sparse)


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
