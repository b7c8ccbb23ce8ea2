"""Sizes of public models: parameters as their makers count them, KV bytes to the last one."""

from __future__ import annotations

import pytest

from cluster.model_config import known_models, model_shape
from cluster.model_size import active_parameters, kv_bytes, kv_bytes_per_token, parameters, weight_bytes

BILLION = 1e9

# As published with the weights: the number of parameters in the checkpoint (of DeepSeek-V3 without its draft layer).
PUBLISHED = {
    "deepseek-v3": 671.03,
    "gemma-2-9b": 9.2417,
    "gpt-oss-120b": 116.83,
    "gpt-oss-20b": 20.91,
    "llama-3.1-405b": 405.85,
    "llama-3.1-70b": 70.554,
    "llama-3.1-8b": 8.0303,
    "llama-3.2-1b": 1.2358,
    "mistral-7b-v0.1": 7.2417,
    "mixtral-8x7b": 46.703,
    "phi-3-mini-4k": 3.8211,
    "qwen2.5-7b": 7.6156,
    "qwen3-0.6b": 0.59605,
    "qwen3-30b-a3b": 30.532,
    "qwen3-32b": 32.762,
}

# 2 * layers * key and value heads * head size * 2 bytes; of DeepSeek layers * (512 + 64) * 2 bytes.
KV_BYTES = {
    "deepseek-v3": 61 * (512 + 64) * 2,
    "gemma-2-9b": 2 * 42 * 8 * 256 * 2,
    "gpt-oss-120b": 2 * 36 * 8 * 64 * 2,
    "gpt-oss-20b": 2 * 24 * 8 * 64 * 2,
    "llama-3.1-405b": 516_096,
    "llama-3.1-70b": 327_680,
    "llama-3.1-8b": 131_072,
    "llama-3.2-1b": 32_768,
    "mistral-7b-v0.1": 131_072,
    "mixtral-8x7b": 131_072,
    "phi-3-mini-4k": 2 * 32 * 32 * 96 * 2,
    "qwen2.5-7b": 57_344,
    "qwen3-0.6b": 114_688,
    "qwen3-30b-a3b": 98_304,
    "qwen3-32b": 262_144,
}


def test_every_shipped_shape_has_its_published_count_here() -> None:
    assert set(known_models()) == set(PUBLISHED) == set(KV_BYTES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_within_a_hundredth_of_the_published_count(name: str) -> None:
    assert parameters(model_shape(name)) / BILLION == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize(
    ("name", "exact"),
    [("llama-3.1-70b", 70_553_706_496), ("qwen2.5-7b", 7_615_616_512), ("gemma-2-9b", 9_241_705_984),
     ("mixtral-8x7b", 46_702_792_704), ("gpt-oss-20b", 20_914_757_184), ("qwen3-0.6b", 596_049_920)],
)  # fmt: skip
def test_norms_biases_sinks_and_tied_embeddings_are_counted_to_the_last_one(name: str, exact: int) -> None:
    assert parameters(model_shape(name)) == exact


@pytest.mark.parametrize(
    ("name", "published", "within"),
    [
        ("mixtral-8x7b", 12.9, 0.01),
        ("qwen3-30b-a3b", 3.3, 0.02),
        ("deepseek-v3", 37.0, 0.02),
        ("llama-3.1-70b", 70.554, 0.001),
    ],
)
def test_of_experts_only_the_chosen_ones_are_active(name: str, published: float, within: float) -> None:
    assert active_parameters(model_shape(name)) / BILLION == pytest.approx(published, rel=within)


@pytest.mark.parametrize("name", KV_BYTES)
def test_kv_bytes_of_a_token_are_exact(name: str) -> None:
    assert kv_bytes_per_token(model_shape(name)) == KV_BYTES[name]


@pytest.mark.parametrize("name", KV_BYTES)
def test_a_short_sequence_takes_its_tokens_times_the_bytes_of_one(name: str) -> None:
    assert kv_bytes(model_shape(name), 100) == 100 * KV_BYTES[name]


def test_layers_with_a_window_keep_no_more_than_that() -> None:
    gemma = model_shape("gemma-2-9b")
    half = KV_BYTES["gemma-2-9b"] / 2
    assert kv_bytes(gemma, 8_000) == half * 8_000 + half * 4_096
    assert kv_bytes(model_shape("mistral-7b-v0.1"), 30_000) == 4_096 * KV_BYTES["mistral-7b-v0.1"]


def test_the_worked_70b_example_holds() -> None:
    shape = model_shape("llama-3.1-70b")
    assert weight_bytes(shape) / BILLION == pytest.approx(141.1, abs=0.05)
    assert kv_bytes(shape, 4_096) / BILLION == pytest.approx(1.342, abs=0.001)


@pytest.mark.parametrize(
    ("name", "weights", "gigabytes"),
    [
        ("llama-3.1-70b", "fp8", 70.55 + 2 * 1.05),  # embedding and output head stay in 16 bit
        ("gpt-oss-20b", None, 13.75),  # the published checkpoint: experts in 4.25 bits, the rest in 16
        ("gpt-oss-120b", None, 65.2),
        ("deepseek-v3", None, 672.9),
    ],
)
def test_quantised_weights_take_their_bytes(name: str, weights: str | None, gigabytes: float) -> None:
    assert weight_bytes(model_shape(name, weights)) / BILLION == pytest.approx(gigabytes, rel=0.002)
