"""How many parameters a model has, and how many bytes its weights and its KV cache take. Exact, in closed form.

A dense model has 2VD + 3DFL + (2DNH + 2DKH)L parameters and little else (Austin et al., "How to Scale Your Model",
2025, chapter "All the Transformer Math You Need to Know"); here with the forms of experts, latent attention and tied
embeddings, and with norms and biases. It must not know hardware or time.
"""

from __future__ import annotations

from cluster.model_shape import Attention, DenseForward, Forward, GroupedAttention, LayerGroup, ModelShape

HEAD_BYTES = 2.0
"""Of each number of the embedding and the output head, which stay in 16 bit."""


def parameters(shape: ModelShape) -> int:
    """All of them: those of the layers, the embedding, the output head unless it is the embedding, the last norm."""
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    layers = sum(group.count * layer_parameters(group, shape.hidden) for group in shape.layers)
    return embeddings + layers + shape.hidden


def active_parameters(shape: ModelShape) -> int:
    """Those that one token passes through: all but the experts that it does not choose."""
    idle = sum(
        group.count * (group.forward.experts - group.forward.chosen) * expert_parameters(group.forward, shape.hidden)
        for group in shape.layers
        if not isinstance(group.forward, DenseForward)
    )
    return parameters(shape) - idle


def layer_parameters(group: LayerGroup, hidden: int) -> int:
    small = group.norms * hidden + _attention_vectors(group.attention, hidden)
    experts = 0 if isinstance(group.forward, DenseForward) else group.forward.experts
    routed = experts * expert_parameters(group.forward, hidden)
    return attention_matrices(group.attention, hidden) + shared_matrices(group.forward, hidden) + routed + small


def attention_matrices(attention: Attention, hidden: int) -> int:
    """2DNH + 2DKH; of latent attention, the matrices that compress and those that rebuild (arXiv:2405.04434, 2.1)."""
    if isinstance(attention, GroupedAttention):
        return 2 * hidden * attention.head_size * (attention.heads + attention.kv_heads)
    queries = attention.heads * attention.key_size
    rank = attention.query_rank
    query = hidden * queries if rank is None else hidden * rank + rank * queries
    rebuilt = attention.kv_rank * attention.heads * (attention.plain_size + attention.value_size)
    return query + hidden * attention.cached + rebuilt + attention.heads * attention.value_size * hidden


def shared_matrices(forward: Forward, hidden: int) -> int:
    """Of a feed-forward, what every token passes through: 3DF; of experts, the shared ones and the router."""
    if isinstance(forward, DenseForward):
        return 3 * hidden * forward.width
    vectors = forward.experts * (int(forward.biased) + int(forward.scored))
    return 3 * hidden * forward.shared_width + hidden * forward.experts + vectors


def expert_parameters(forward: Forward, hidden: int) -> int:
    """One routed expert; 0 of a dense feed-forward."""
    if isinstance(forward, DenseForward):
        return 0
    vectors = 2 * forward.width + hidden if forward.biased else 0
    return 3 * hidden * forward.width + vectors


def weight_bytes(shape: ModelShape) -> float:
    """Of all weights, as the engine holds them."""
    return layer_weight_bytes(shape) + HEAD_BYTES * shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def layer_weight_bytes(shape: ModelShape) -> float:
    routed = sum(
        group.count * group.forward.experts * expert_parameters(group.forward, shape.hidden)
        for group in shape.layers
        if not isinstance(group.forward, DenseForward)
    )
    layers = sum(group.count * layer_parameters(group, shape.hidden) for group in shape.layers)
    return (layers - routed) * shape.precision.weight + routed * shape.precision.expert


def kv_bytes_per_token(shape: ModelShape) -> float:
    """What one token adds to the cache while every window still has room: 2KH numbers in each layer; of latent
    attention `kv_rank` + `rope_size` (arXiv:2405.04434, table 1)."""
    return sum(group.count * layer_kv_bytes(group, shape) for group in shape.layers)


def kv_bytes(shape: ModelShape, tokens: float) -> float:
    """The cache of one sequence of `tokens`: a layer with a window keeps no more than that (Jiang et al., "Mistral 7B",
    arXiv:2310.06825)."""
    return sum(group.count * layer_kv_bytes(group, shape) * group.attended(tokens) for group in shape.layers)


def layer_kv_bytes(group: LayerGroup, shape: ModelShape) -> float:
    """Of one token in one layer."""
    attention = group.attention
    numbers = (
        2 * attention.kv_heads * attention.head_size if isinstance(attention, GroupedAttention) else attention.cached
    )
    return numbers * shape.precision.cache


def _attention_vectors(attention: Attention, hidden: int) -> int:
    if not isinstance(attention, GroupedAttention):
        return (attention.query_rank or 0) + attention.kv_rank  # norms of what is compressed
    inputs = attention.head_size * (attention.heads + 2 * attention.kv_heads) if attention.input_bias else 0
    output = hidden if attention.output_bias else 0
    norms = 2 * attention.head_size if attention.head_norms else 0
    return inputs + output + norms + (attention.heads if attention.sinks else 0)
