"""Configurations of models: what is read from them, what is refused and how that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.model_config import model_shape, parse_shape
from cluster.model_shape import DenseForward, ExpertForward, GroupedAttention, LatentAttention

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 1_000,
    "max_position_embeddings": 2_048,
}


def windows(**keys: Any) -> dict[int | None, int]:
    groups = parse_shape(LLAMA | keys, "m").layers
    return {group.window: group.count for group in groups}


def test_heads_that_are_not_named_follow_from_the_others() -> None:
    [group] = parse_shape(LLAMA, "m").layers
    assert group.attention == GroupedAttention(heads=8, kv_heads=8, head_size=32)
    assert (group.count, group.forward) == (4, DenseForward(512))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, {64: 4}),
        ({"model_type": "mistral", "sliding_window": None}, {None: 4}),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, {None: 4}),
        (
            {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3},
            {None: 3, 64: 1},
        ),
        ({"model_type": "gemma2", "sliding_window": 64}, {64: 2, None: 2}),
        ({"model_type": "gemma3_text", "sliding_window": 64, "num_hidden_layers": 12}, {64: 10, None: 2}),
        ({"layer_types": ["full_attention"] + 3 * ["sliding_attention"], "sliding_window": 64}, {None: 1, 64: 3}),
    ],
)
def test_each_family_says_which_layers_have_a_window(keys: dict[str, Any], expected: dict[int | None, int]) -> None:
    assert windows(**keys) == expected


def test_layers_before_the_experts_are_dense() -> None:
    shape = model_shape("deepseek-v3")
    dense, sparse = shape.layers
    assert (dense.count, dense.forward) == (3, DenseForward(18_432))
    assert (sparse.count, sparse.forward) == (58, ExpertForward(256, 8, 2_048, 2_048, scored=True))
    assert sparse.attention == LatentAttention(128, 1_536, 512, 128, 64, 128)


def test_a_family_ties_its_embeddings_unless_the_file_says_otherwise() -> None:
    assert not parse_shape(LLAMA, "m").tied
    assert parse_shape(LLAMA | {"tie_word_embeddings": True}, "m").tied
    assert parse_shape(LLAMA | {"model_type": "gemma2", "sliding_window": 64}, "m").tied


def test_a_model_is_read_from_its_directory_or_file(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA))
    for given in (directory, directory / "config.json"):
        shape = model_shape(str(given))
        assert (shape.name, shape.hidden, shape.hub) == ("mine", 256, None)


def test_a_shipped_shape_knows_where_engines_get_it() -> None:
    assert model_shape("Llama-3.1-8B").hub == "meta-llama/Llama-3.1-8B-Instruct"


def test_a_shipped_shape_is_found_by_its_name_at_the_hub() -> None:
    assert model_shape("meta-llama/Llama-3.1-8B-Instruct") == model_shape("llama-3.1-8b")
    with pytest.raises(ConfigError, match="model"):
        model_shape("meta-llama/Llama-3.1-8B-Instructed")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"hidden_size": 0}, "model m: hidden_size: Input should be greater than or equal to 1"),
        ({"num_hidden_layers": "many"}, "model m: num_hidden_layers: Input should be a valid integer"),
        ({"model_type": "lama"}, "model m: model_type 'lama' is not known; did you mean llama"),
        ({"layer_types": ["full_attention"]}, "model m: layer_types has 1 of 4 layers"),
        ({"kv_lora_rank": 64}, "model m: kv_lora_rank needs qk_nope_head_dim"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "model m: num_experts_per_tok is 5 of 4 experts"),
        ({"quantization_config": {"quant_method": "new"}}, "quant_method new is not known"),
    ],
)
def test_what_cannot_be_a_model_is_refused_by_its_key(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match="model m") as refused:
        parse_shape(LLAMA | keys, "m")
    assert line in str(refused.value)


def test_an_unknown_quantisation_is_no_matter_when_the_weights_are_named() -> None:
    raw = LLAMA | {"quantization_config": {"quant_method": "new"}}
    assert parse_shape(raw, "m", "fp8").precision.weight == 1.0


def test_a_missing_key_is_named() -> None:
    raw = {key: value for key, value in LLAMA.items() if key != "vocab_size"}
    with pytest.raises(ConfigError, match="vocab_size: Field required"):
        parse_shape(raw, "m")


@pytest.mark.parametrize("text", ["{", "[]", '"llama"', ""])
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        model_shape(str(tmp_path))


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read: No such file"):
        model_shape(str(tmp_path))


def test_an_unknown_name_gets_the_nearest_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*llama-3\.1-70b.*known: deepseek-v3"):
        model_shape("llama-3.1-70")
