"""The demo model: the same bytes every time, a tokenizer that loses nothing, a template with tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cluster.errors import ConfigError
from deploy import demo_model as model_code
from deploy.demo_model import DEMO_DIGEST, model_digest, write_demo_model
from deploy.demo_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, VOCABULARY_SIZE, tokenizer_json

TOKENIZER = Tokenizer.from_str(json.dumps(tokenizer_json()))


def test_seed_0_gives_the_known_bytes(tmp_path: Path) -> None:
    assert write_demo_model(tmp_path / "model") == DEMO_DIGEST
    assert model_digest(tmp_path / "model") == DEMO_DIGEST


def test_another_seed_gives_other_weights_and_the_same_tokenizer(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "a", seed=1)
    write_demo_model(tmp_path / "b", seed=2)
    different = {p.name for p in (tmp_path / "a").iterdir() if p.read_bytes() != (tmp_path / "b" / p.name).read_bytes()}
    assert different == {"model.safetensors"}


def test_writing_it_again_changes_nothing(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").stat().st_mtime_ns
    assert write_demo_model(tmp_path / "model") == DEMO_DIGEST
    assert (tmp_path / "model" / "config.json").stat().st_mtime_ns == before


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="already holds something else"):
        write_demo_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_code, "_safetensors", fail)
    with pytest.raises(ConfigError, match="No space left"):
        write_demo_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_load_as_a_llama_checkpoint(demo_model: Path) -> None:
    from safetensors import safe_open

    with safe_open(demo_model / "model.safetensors", "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        head = weights.get_tensor("lm_head.weight").float().numpy()
    assert shapes["model.embed_tokens.weight"] == (VOCABULARY_SIZE, 256)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_458_752
    assert abs(head.std() - 0.1) < 0.001
    assert not head[: len(SPECIAL_TOKENS)].any(), "greedy output must not end by itself"


@pytest.mark.parametrize(("value", "bits"), [(1.0, 0x3F80), (-2.5, 0xC020), (1.00390625, 0x3F80), (1.01171875, 0x3F82)])
def test_bfloat16_rounds_to_nearest_and_ties_to_even(value: float, bits: int) -> None:
    assert model_code._bfloat16(np.array([value], dtype=np.float32)) == bits.to_bytes(2, "little")


def test_every_token_id_has_a_token() -> None:
    assert TOKENIZER.get_vocab_size() == VOCABULARY_SIZE
    assert all(TOKENIZER.id_to_token(token) is not None for token in range(VOCABULARY_SIZE))


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_english_takes_fewer_tokens_than_letters() -> None:
    text = "A prompt comes in over HTTP or gRPC and a prefill worker runs it."
    assert len(TOKENIZER.encode(text).ids) < 0.6 * len(text)


def test_each_turn_is_a_single_special_token_apart() -> None:
    ids = TOKENIZER.encode("<|im_start|>user\nhi<|im_end|>\n").ids
    assert [ids.count(token) for token in (1, 2)] == [1, 1]


def test_the_template_opens_the_assistants_turn() -> None:
    assert _render([{"role": "user", "content": "hi"}]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_template_renders_tools_calls_and_results() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    text = _render(messages, tools=[{"type": "function", "function": {"name": "weather"}}])
    assert text.startswith("<|im_start|>system\nBe brief.\n")
    assert '<tools>\n{"type": "function", "function": {"name": "weather"}}\n</tools>' in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text


def _render(messages: list[dict[str, object]], tools: list[dict[str, object]] | None = None) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, tools=tools, add_generation_prompt=True)
