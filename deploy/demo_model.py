"""A small Llama with random weights, so that every machine can serve something without a download.

Byte-identical for a seed on every platform: a hash's output stream and integer arithmetic decide every weight. Owns the
model directory's files; knows nothing of engines or of the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import ConfigError
from deploy.demo_tokenizer import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TURN_END,
    VOCABULARY_SIZE,
    tokenizer_config_json,
    tokenizer_json,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# SHA-256 of the directory written for seed 0.
DEMO_DIGEST = "97260e355742b8ab05d688918dc9c482380d7f810ef1cbe9014e811030069b52"


@dataclass(frozen=True, slots=True)
class DemoShape:
    """The model's sizes: 4.5 million parameters, 16 KiB of KV cache a layer for each block of 32 bfloat16 tokens."""

    layers: int = 4
    hidden: int = 256
    intermediate: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    context: int = 8_192
    # Wide enough that greedy output depends on the prompt and on every block of its KV cache.
    initializer_range: float = 0.1


SHAPE = DemoShape()


def write_demo_model(directory: Path, seed: int = 0) -> str:
    """Writes the model and its tokenizer and returns `model_digest` of the directory.

    The directory appears whole or not at all. A directory that already holds this very model is left as it is. Raises
    `ConfigError` when it holds anything else or cannot be written.
    """
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        for name, content in _files(seed):
            (scratch / name).write_bytes(content)
        scratch.chmod(0o755)
        digest = model_digest(scratch)
        _put_in_place(scratch, directory, digest)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return digest


def model_digest(directory: Path) -> str:
    """SHA-256, in hex, over the names and contents of all files of a flat directory. Raises `OSError`."""
    total = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        total.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _put_in_place(scratch: Path, directory: Path, digest: str) -> None:
    try:
        os.rename(scratch, directory)
    except OSError as error:
        if not directory.is_dir():
            raise
        if model_digest(directory) != digest:
            raise ConfigError(
                f"{directory}: already holds something else; remove it or name another directory"
            ) from error


def _files(seed: int) -> Iterator[tuple[str, bytes]]:
    yield "config.json", _json(_config_json())
    yield "generation_config.json", _json(_generation_config_json())
    yield "tokenizer.json", _json(tokenizer_json())
    yield "tokenizer_config.json", _json(tokenizer_config_json(SHAPE.context))
    yield "chat_template.jinja", CHAT_TEMPLATE.encode()
    yield "model.safetensors", _safetensors({name: _weight(name, shape, seed) for name, shape in _shapes()})


def _json(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _config_json() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "num_hidden_layers": SHAPE.layers,
        "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.intermediate,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "head_dim": SHAPE.head_dim,
        "max_position_embeddings": SHAPE.context,
        "vocab_size": VOCABULARY_SIZE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": SHAPE.initializer_range,
        **_special_ids(),
    }


def _generation_config_json() -> dict[str, object]:
    return {"do_sample": True, "temperature": 1.0, **_special_ids()}


def _special_ids() -> dict[str, object]:
    return {"bos_token_id": 0, "eos_token_id": SPECIAL_TOKENS.index(TURN_END), "pad_token_id": 0}


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names as in a Llama checkpoint; linear weights are (output, input)."""
    query, kv = SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim
    yield "model.embed_tokens.weight", (VOCABULARY_SIZE, SHAPE.hidden)
    for layer in range(SHAPE.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (SHAPE.hidden,)
        yield f"{at}.self_attn.q_proj.weight", (query, SHAPE.hidden)
        yield f"{at}.self_attn.k_proj.weight", (kv, SHAPE.hidden)
        yield f"{at}.self_attn.v_proj.weight", (kv, SHAPE.hidden)
        yield f"{at}.self_attn.o_proj.weight", (SHAPE.hidden, query)
        yield f"{at}.post_attention_layernorm.weight", (SHAPE.hidden,)
        yield f"{at}.mlp.gate_proj.weight", (SHAPE.intermediate, SHAPE.hidden)
        yield f"{at}.mlp.up_proj.weight", (SHAPE.intermediate, SHAPE.hidden)
        yield f"{at}.mlp.down_proj.weight", (SHAPE.hidden, SHAPE.intermediate)
    yield "model.norm.weight", (SHAPE.hidden,)
    yield "lm_head.weight", (VOCABULARY_SIZE, SHAPE.hidden)


def _weight(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    import numpy as np

    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    values = _bell(f"{seed}/{name}", shape[0] * shape[1]).reshape(shape) * np.float32(SHAPE.initializer_range)
    if name == "lm_head.weight":
        values[: len(SPECIAL_TOKENS)] = 0  # a logit of 0 is never the largest: greedy output goes on to its limit
    return values


def _bell(stream: str, count: int) -> NDArray[np.float32]:
    """`count` values of mean 0, variance 1 and bell shape: sums of four uniform 16-bit integers, so exact anywhere."""
    import numpy as np

    raw = np.frombuffer(hashlib.shake_128(stream.encode()).digest(count * 8), dtype="<u2").astype(np.int32)
    sums = raw.reshape(count, 4).sum(axis=1) - 2 * 0xFFFF
    values: NDArray[np.float32] = sums.astype(np.float32) * np.float32(1.7320508 / 0x10000)
    return values


def _bfloat16(values: NDArray[np.float32]) -> bytes:
    """The upper half of each float32, rounded to the nearest, ties to even. Finite values only."""
    import numpy as np

    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def _safetensors(weights: dict[str, NDArray[np.float32]]) -> bytes:
    """The file format by hand, for the library's own byte layout may change with its version."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, values in weights.items():
        start = len(body)
        body += _bfloat16(values)
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [start, len(body)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(body)
