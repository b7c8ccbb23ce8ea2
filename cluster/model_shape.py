"""What of a model's architecture decides its size and its costs, as typed values.

Symbols follow the usual notation: V vocabulary, D hidden size, F feed-forward width, L layers, N query heads, K key and
value heads, H size of a head. It must not know files, hardware or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Multi-head (K = N), grouped-query or multi-query (K = 1) attention; Ainslie et al., "GQA", arXiv:2305.13245.

    `input_bias`, `output_bias`: vectors added after the projections. `head_norms`: queries and keys are normalised.
    `sinks`: one learnt logit for each head.
    """

    heads: int
    kv_heads: int
    head_size: int
    input_bias: bool = False
    output_bias: bool = False
    head_norms: bool = False
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention: keys and values are rebuilt from one small vector for each token; DeepSeek-AI,
    "DeepSeek-V2", arXiv:2405.04434, section 2.1.

    `query_rank`: of the compressed query, None where queries are projected at once. `kv_rank`: of what is cached for
    keys and values; `rope_size`: the part of a key that carries the position, cached beside it, one for all heads.
    """

    heads: int
    query_rank: int | None
    kv_rank: int
    plain_size: int
    rope_size: int
    value_size: int

    @property
    def key_size(self) -> int:
        return self.plain_size + self.rope_size

    @property
    def cached(self) -> int:
        """Numbers kept for each token in each layer."""
        return self.kv_rank + self.rope_size


@dataclass(frozen=True, slots=True)
class DenseForward:
    """Gated feed-forward: three matrices of D x F."""

    width: int


@dataclass(frozen=True, slots=True)
class ExpertForward:
    """Mixture of experts: each token passes `chosen` of `experts` gated feed-forwards of `width`, and shared ones of
    `shared_width` together; Shazeer et al., arXiv:1701.06538; shared experts: Dai et al., "DeepSeekMoE",
    arXiv:2401.06066. `biased`: the router and the experts' matrices add vectors. `scored`: the router has one more
    number for each expert, to balance them."""

    experts: int
    chosen: int
    width: int
    shared_width: int = 0
    biased: bool = False
    scored: bool = False


Attention: TypeAlias = GroupedAttention | LatentAttention
Forward: TypeAlias = DenseForward | ExpertForward


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """`count` equal layers. `window`: a token attends to so many tokens at most, itself among them; None: to all before
    it. `norms`: vectors of size D that normalise."""

    count: int
    attention: Attention
    forward: Forward
    window: int | None = None
    norms: int = 2

    def attended(self, context: float) -> float:
        """Of `context` tokens, how many one token attends to."""
        return context if self.window is None else min(context, float(self.window))


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of one number: of the matrices of attention and dense layers (`weight`), of experts, of the KV cache.
    Scales of quantised weights are counted in. Embeddings, output head and activations are always 16 bit.

    `fp8`: weights are 8-bit floats, so hardware that computes on such may do so.
    """

    weight: float = 2.0
    expert: float = 2.0
    cache: float = 2.0
    fp8: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`tied`: the output head is the embedding. `longest`: tokens that the model was made for, prompt and output
    together. `hub`: the name under which engines fetch it, where it is known."""

    name: str
    vocabulary: int
    hidden: int
    layers: tuple[LayerGroup, ...]
    tied: bool
    longest: int
    precision: Precision = Precision()
    hub: str | None = None

    @property
    def layer_count(self) -> int:
        return sum(group.count for group in self.layers)
