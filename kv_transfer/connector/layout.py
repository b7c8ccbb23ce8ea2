"""Where vLLM keeps its KV blocks, and everything about them that a peer must have in common.

The only module that reads vLLM's model, cache and parallel configuration and the shape of its KV tensors.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform

from cluster.errors import ConfigError
from kv_transfer.fingerprint import Fingerprint, digest_of_config, digest_of_weights
from kv_transfer.transport import Layout, Region

# Of the model's configuration: names of places and tools, which may differ between equal models.
_IGNORED = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash"})


def require_supported(config: VllmConfig, kv_cache_config: Any) -> None:
    """Raises `ConfigError` for engines whose blocks this connector cannot move."""
    groups = kv_cache_config.kv_cache_groups
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    if kinds not in (["FullAttentionSpec"], ["MLAAttentionSpec"]):
        raise ConfigError(
            f"the model's KV cache has the groups {kinds}; Baton's connector moves one group of full attention"
        )
    if config.parallel_config.pipeline_parallel_size > 1:
        raise ConfigError("Baton's connector does not support pipeline parallelism: use tensor parallelism")


def layout_of(kv_caches: dict[str, torch.Tensor], num_blocks: int) -> Layout:
    """Every layer's tensor must have its blocks in the first dimension. All layers may share one storage, so address
    and stride are the tensor's own, never the storage's. Raises `ConfigError` for other layouts."""
    tensors = list(kv_caches.values())
    for name, tensor in kv_caches.items():
        if tensor.shape[0] != num_blocks:
            raise ConfigError(
                f"layer {name}: its KV cache of shape {tuple(tensor.shape)} does not begin with the blocks"
            )
        if not tensor[0].is_contiguous():
            raise ConfigError(f"layer {name}: a KV block of shape {tuple(tensor.shape[1:])} is not contiguous")
    regions = tuple(
        Region(t.data_ptr(), t.stride(0) * t.element_size(), t[0].numel() * t.element_size(), num_blocks)
        for t in tensors
    )
    device = tensors[0].device
    return Layout(regions, "DRAM" if device.type == "cpu" else "VRAM", device.index or 0)


def fingerprint_of(config: VllmConfig, kv_caches: dict[str, torch.Tensor]) -> Fingerprint:
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    tensors = list(kv_caches.values())
    return Fingerprint.of(
        {
            "model_config": digest_of_config(model.hf_config.to_dict(), _IGNORED),
            "weights": _weights(model),
            "quantization": str(model.quantization),
            "dtype": str(model.dtype),
            "cache_dtype": str(cache.cache_dtype),
            "block_size": str(cache.block_size),
            "layers": str(len(tensors)),
            "layer_shapes": _shapes(tensors),
            "packing": _packing(config),
            "tensor_parallel": str(parallel.tensor_parallel_size),
        }
    )


def _shapes(tensors: list[torch.Tensor]) -> str:
    """Of one block in each layer, in layer order: shape, strides and type; equal neighbours in one word."""
    words = (f"{tuple(t.shape[1:])}:{t.stride()[1:]}:{t.dtype}" for t in tensors)
    return " ".join(f"{len(list(run))}x{word}" for word, run in groupby(words))


def _weights(model: Any) -> str:
    directory = Path(model.model)
    if directory.is_dir():
        return digest_of_weights(directory)
    commit = getattr(model.hf_config, "_commit_hash", None)
    return f"{model.model}@{commit or model.revision or 'main'}"


def _packing(config: VllmConfig) -> str:
    """How the kernels order the bytes inside a block: on CPU that depends on the instruction set, without a trace in
    the shape."""
    if not current_platform.is_cpu():
        return f"{current_platform.device_type}:{config.attention_config.backend}"
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    model, cache = config.model_config, config.cache_config
    isa: str = _get_attn_isa(model.dtype, cache.block_size, model.get_head_size(), cache.cache_dtype)
    return f"cpu:{isa}"
