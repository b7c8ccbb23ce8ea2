"""Reads a model's `config.json` into a `ModelShape`, and knows the shapes that are shipped with Baton.

Each model family says in its own way which layers have a window or experts, and what it leaves out; nothing of that
passes this module. A family that is not listed is refused: guessing its layers would be wrong without a word.
"""

from __future__ import annotations

import importlib.resources
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.config_section import Count
from cluster.errors import ConfigError
from cluster.model_shape import (
    Attention,
    DenseForward,
    ExpertForward,
    Forward,
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    ModelShape,
    Precision,
)
from cluster.nearest import unknown_name

_SHIPPED = importlib.resources.files("cluster") / "model_configs"
_MXFP4 = (4 + 8 / 32) / 8  # 4 bits, and a scale of 8 bits for 32 of them (Open Compute Project, "OCP MX", v1.0)

# What the weights may be held in, whatever the configuration says.
WEIGHTS = {
    "bf16": Precision(),
    "fp8": Precision(weight=1.0, expert=1.0, fp8=True),
    "int4": Precision(weight=0.5 + 2.5 / 128, expert=0.5 + 2.5 / 128),  # scales and zero points of groups of 128
}


class _Quantisation(BaseModel):
    quant_method: str
    bits: Count | None = None
    w_bit: Count | None = None
    group_size: int = 128


_Index = Annotated[int, Field(ge=0)]


class _Raw(BaseModel):
    """The keys of `config.json` that decide sizes, under the names that families give them. Others do not matter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_type: str
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    intermediate_size: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    quantization_config: _Quantisation | None = None
    sliding_window: Count | None = None
    use_sliding_window: bool = False
    max_window_layers: _Index = 0
    sliding_window_pattern: Count = 6
    layer_types: list[str] | None = None
    num_local_experts: Count | None = None
    num_experts: Count | None = None
    n_routed_experts: Count | None = None
    n_shared_experts: _Index | None = None
    num_experts_per_tok: Count = 1
    moe_intermediate_size: Count | None = None
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] = Field(default_factory=list)
    first_k_dense_replace: _Index = 0
    moe_layer_freq: Count = 1
    topk_method: str | None = None
    q_lora_rank: Count | None = None
    kv_lora_rank: Count | None = None
    qk_nope_head_dim: Count | None = None
    qk_rope_head_dim: Count | None = None
    v_head_dim: Count | None = None

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


_Windowed = Callable[[_Raw, int], bool]


@dataclass(frozen=True, slots=True)
class _Family:
    """How models of one `model_type` differ from a Llama. `windowed`: whether a layer has the window, where
    `layer_types` does not say."""

    windowed: _Windowed = lambda _raw, _layer: False
    tied: bool = False
    norms: int = 2
    head_norms: bool = False
    query_bias: bool = False
    sinks: bool = False


def _all(_raw: _Raw, _layer: int) -> bool:
    return True


def _when_used(raw: _Raw, layer: int) -> bool:
    return raw.use_sliding_window and layer >= raw.max_window_layers


_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(windowed=_all),
    "mixtral": _Family(windowed=_all),
    "phi3": _Family(windowed=_all),
    "qwen2": _Family(windowed=_when_used, query_bias=True),
    "qwen3": _Family(windowed=_when_used, head_norms=True),
    "qwen3_moe": _Family(windowed=_when_used, head_norms=True),
    "gemma2": _Family(windowed=lambda _raw, layer: layer % 2 == 0, tied=True, norms=4),
    "gemma3_text": _Family(
        windowed=lambda raw, layer: (layer + 1) % raw.sliding_window_pattern != 0, tied=True, norms=4, head_norms=True
    ),
    "gpt_oss": _Family(windowed=lambda _raw, layer: layer % 2 == 0, sinks=True),
    "deepseek_v2": _Family(),
    "deepseek_v3": _Family(),
}


def model_shape(model: str, weights: str | None = None) -> ModelShape:
    """The shape of a shipped model by its name or its hub's, of a `config.json`, or of a directory that holds one.

    `weights`: a key of `WEIGHTS`, or None for what the configuration says. Raises `ConfigError`: no such file or name,
    a file that is no model configuration, a family or quantisation that is not known.
    """
    path = Path(model)
    if path.is_dir():
        return _from_file(path / "config.json", path.resolve().name, weights)
    if path.suffix == ".json" or path.is_file():
        return _from_file(path, path.resolve().parent.name, weights)
    by_name = {name.lower(): name for name in known_models()}
    name = by_name.get(model.lower()) or _of_hub(model)
    if name is None:
        raise unknown_name("model", model, known_models())
    document = _shipped(name)
    return replace(parse_shape(document["config"], name, weights), hub=document["hub"])


def known_models() -> tuple[str, ...]:
    """Names of the shapes that are shipped, sorted."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _SHIPPED.iterdir() if file.name.endswith(".json")))


def _shipped(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_SHIPPED / f"{name}.json").read_text("utf-8"))
    return document


def _of_hub(model: str) -> str | None:
    found = (name for name in known_models() if _shipped(name)["hub"].lower() == model.lower())
    return next(found, None) if "/" in model else None


def parse_shape(raw: object, name: str, weights: str | None = None) -> ModelShape:
    """`raw` is a decoded `config.json`. Raises `ConfigError` that names the key."""
    try:
        keys = _Raw.model_validate(raw)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"])) or "the document"
        raise ConfigError(f"model {name}: {key}: {detail['msg']}") from error
    family = _FAMILIES.get(keys.model_type)
    if family is None:
        raise unknown_name(f"model {name}: model_type", keys.model_type, _FAMILIES)
    if keys.layer_types is not None and len(keys.layer_types) != keys.num_hidden_layers:
        raise ConfigError(f"model {name}: layer_types has {len(keys.layer_types)} of {keys.num_hidden_layers} layers")
    return ModelShape(
        name=name,
        vocabulary=keys.vocab_size,
        hidden=keys.hidden_size,
        layers=_layers(keys, family, name),
        tied=family.tied if keys.tie_word_embeddings is None else keys.tie_word_embeddings,
        longest=keys.max_position_embeddings,
        precision=_precision(keys.quantization_config, name) if weights is None else _named_precision(weights),
    )


def _from_file(path: Path, name: str, weights: str | None) -> ModelShape:
    try:
        raw = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    return parse_shape(raw, name, weights)


def _layers(raw: _Raw, family: _Family, name: str) -> tuple[LayerGroup, ...]:
    attention = _attention(raw, family, name)
    kinds = Counter(
        (_forward(raw, layer, name), raw.sliding_window if _is_windowed(raw, family, layer) else None)
        for layer in range(raw.num_hidden_layers)
    )
    return tuple(
        LayerGroup(count, attention, forward, window, family.norms) for (forward, window), count in kinds.items()
    )


def _is_windowed(raw: _Raw, family: _Family, layer: int) -> bool:
    if raw.layer_types is not None:
        return raw.layer_types[layer] == "sliding_attention"
    return family.windowed(raw, layer)


def _attention(raw: _Raw, family: _Family, name: str) -> Attention:
    if raw.kv_lora_rank is not None:
        sizes = (raw.qk_nope_head_dim, raw.qk_rope_head_dim, raw.v_head_dim)
        if None in sizes:
            raise ConfigError(f"model {name}: kv_lora_rank needs qk_nope_head_dim, qk_rope_head_dim and v_head_dim")
        plain, rope, value = (size or 0 for size in sizes)
        return LatentAttention(raw.num_attention_heads, raw.q_lora_rank, raw.kv_lora_rank, plain, rope, value)
    return GroupedAttention(
        heads=raw.num_attention_heads,
        kv_heads=raw.num_key_value_heads or raw.num_attention_heads,
        head_size=raw.head_size,
        input_bias=raw.attention_bias or family.query_bias,
        output_bias=raw.attention_bias,
        head_norms=family.head_norms,
        sinks=family.sinks,
    )


def _forward(raw: _Raw, layer: int, name: str) -> Forward:
    experts = raw.num_local_experts or raw.num_experts or raw.n_routed_experts
    if experts is None or not _is_sparse(raw, layer):
        return DenseForward(raw.intermediate_size)
    if raw.num_experts_per_tok > experts:
        raise ConfigError(f"model {name}: num_experts_per_tok is {raw.num_experts_per_tok} of {experts} experts")
    width = raw.moe_intermediate_size or raw.intermediate_size
    return ExpertForward(
        experts=experts,
        chosen=raw.num_experts_per_tok,
        width=width,
        shared_width=(raw.n_shared_experts or 0) * width,
        biased=raw.model_type == "gpt_oss",
        scored=raw.topk_method == "noaux_tc",
    )


def _is_sparse(raw: _Raw, layer: int) -> bool:
    if layer in raw.mlp_only_layers or layer < raw.first_k_dense_replace:
        return False
    return (layer + 1) % raw.decoder_sparse_step == 0 and layer % raw.moe_layer_freq == 0


def _precision(quantised: _Quantisation | None, name: str) -> Precision:
    if quantised is None:
        return WEIGHTS["bf16"]
    match quantised.quant_method, quantised.bits or quantised.w_bit:
        case "fp8", _:
            return WEIGHTS["fp8"]
        case "mxfp4", _:
            return Precision(expert=_MXFP4)
        case (("gptq" | "awq"), int(bits)):
            scales = (2 + bits / 8) / quantised.group_size if quantised.group_size > 0 else 0.0
            return Precision(weight=bits / 8 + scales, expert=bits / 8 + scales)
    raise ConfigError(
        f"model {name}: quantization_config.quant_method {quantised.quant_method} is not known (fp8, mxfp4, gptq,"
        f" awq); say what the weights are held in: {', '.join(WEIGHTS)}"
    )


def _named_precision(weights: str) -> Precision:
    if weights not in WEIGHTS:
        raise unknown_name("weights", weights, WEIGHTS)
    return WEIGHTS[weights]
