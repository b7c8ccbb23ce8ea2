"""What vLLM's own connector is there for: a model whose layers keep KV in two ways, full and within a window, which
our connector refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kv_transfer.driven_engine import Pair, count, prompt, started_pair

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(480), pytest.mark.asyncio(loop_scope="module")]

LENGTHS = (1, 31, 32, 33, 64, 65, 128, 129, 300, 1000)
OUTPUT = 12
BLOCK = 32
WINDOW = 64
LAYER_BLOCK_BYTES = 2 * 2 * BLOCK * 32 * 4  # K and V, heads, tokens, head size, float32


@pytest.fixture(scope="module")
def windowed_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with the demo model's tokenizer; every second layer looks no further back than the window."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("model") / "windowed"
    shutil.copytree(demo_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    demo = json.loads((demo_model / "config.json").read_text())
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=demo["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=4096,
        initializer_range=0.1,
        eos_token_id=demo["eos_token_id"],
    )
    Gemma3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(windowed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("engines")
    async with started_pair(windowed_model, folder, kv_transfer={"connector": "vllm-nixl", "lease_s": 8.0}) as pair:
        yield pair


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_model_with_windowed_layers_says_what_one_engine_says(pair: Pair, length: int) -> None:
    ids = prompt(length)
    before = await pair.decode.quiet()
    first = await pair.prefill.prefill(ids)
    apart = await pair.decode.decode(ids, OUTPUT, first.ticket)
    _, after = await pair.quiet()

    assert apart.tokens == await pair.prefill.alone(ids, OUTPUT)
    assert apart.origin.pulled_tokens == (length if length > 1 else 0)
    moved = count(after, "nixl", "landed").bytes - count(before, "nixl", "landed").bytes
    blocks, windowed = -(-length // BLOCK), WINDOW // BLOCK + 1
    assert 0 < moved <= 2 * (blocks + min(blocks, windowed)) * LAYER_BLOCK_BYTES
    assert after.recomputed_requests == before.recomputed_requests
