"""What a step costs: the worked example by hand, and laws that hold for every model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cost_model import Bound, CostModel, Part
from cluster.errors import ConfigError
from cluster.hardware import HARDWARE, IDEAL, hardware
from cluster.model_config import known_models, model_shape
from cluster.model_size import active_parameters, kv_bytes, weight_bytes
from cluster.step_work import Chunk, Step
from cluster.tensor_parallelism import tensor_parallel_sizes


def ideal(model: str, gpu: str, tensor_parallel: int = 1) -> CostModel:
    return CostModel(model_shape(model), hardware(gpu), tensor_parallel, IDEAL)


def part(cost_model: CostModel, step: Step, name: str) -> Part:
    return next(each for each in cost_model.step(step).parts if each.name == name)


def test_a_70b_model_takes_70_ms_to_read_and_half_a_ms_to_compute_on_an_a100() -> None:
    model = ideal("llama-3.1-70b", "a100")
    cost = model.step(Step(sequences=1))
    flops = sum(each.flops for each in cost.parts)
    assert flops == pytest.approx(140e9, rel=0.01)  # two for each parameter
    assert flops / HARDWARE["A100"].flops == pytest.approx(0.00045, rel=0.01)
    assert cost.seconds == pytest.approx(0.070, rel=0.03)
    assert cost.bound is Bound.MEMORY


def test_at_batch_one_every_byte_of_the_weights_serves_one_operation() -> None:
    model = ideal("llama-3.1-70b", "h100", 4)
    assert part(model, Step(sequences=1), "layers").intensity == pytest.approx(1.0, rel=0.01)
    assert part(model, Step(sequences=64), "layers").intensity == pytest.approx(64.0, rel=0.01)


def test_the_bound_turns_where_intensity_passes_the_ridge() -> None:
    model, gpu = ideal("llama-3.1-8b", "h100"), HARDWARE["H100"]
    ridge = gpu.flops / gpu.bandwidth  # 295 operations a byte
    below, above = Step(sequences=math.floor(ridge) - 5), Step(sequences=math.ceil(ridge) + 5)
    assert part(model, below, "layers").bound is Bound.MEMORY
    assert part(model, above, "layers").bound is Bound.COMPUTE


def test_a_prompt_is_bound_by_compute_and_a_sequence_by_memory() -> None:
    model = CostModel(model_shape("llama-3.1-70b"), hardware("h100"), 4)
    assert model.step(Step(Chunk(4_096))).bound is Bound.COMPUTE
    assert model.step(Step(sequences=8, context=4_000)).bound is Bound.MEMORY


def test_prefill_computes_two_operations_for_each_parameter_and_pairs_of_tokens() -> None:
    model, tokens = ideal("llama-3.1-8b", "h100"), 2_000
    cost = model.step(Step(Chunk(tokens)))
    shape = model.shape
    matrices = active_parameters(shape) - 2 * shape.vocabulary * shape.hidden
    assert cost.parts[0].flops == pytest.approx(2 * matrices * tokens, rel=0.001)
    pairs = tokens * (tokens + 1) / 2
    assert part(model, Step(Chunk(tokens)), "attention").flops == 32 * 4 * 32 * 128 * pairs


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-2-9b", "mistral-7b-v0.1", "gpt-oss-20b", "deepseek-v3"])
def test_attention_of_a_prompt_is_the_same_in_chunks(name: str) -> None:
    model = ideal(name, "b200", 8)
    whole = part(model, Step(Chunk(6_000)), "attention").flops
    chunks = [part(model, Step(Chunk(1_500, at * 1_500)), "attention").flops for at in range(4)]
    assert sum(chunks) == pytest.approx(whole)


def test_a_window_bounds_what_decode_reads_and_what_prefill_computes() -> None:
    model = ideal("mistral-7b-v0.1", "h100")
    at_window, beyond = Step(sequences=1, context=4_095), Step(sequences=1, context=20_000)
    assert part(model, at_window, "attention").size_bytes == part(model, beyond, "attention").size_bytes
    per_token = part(model, Step(Chunk(1_000, 10_000)), "attention").flops / 1_000
    assert per_token == 32 * 4 * 32 * 128 * 4_096


def test_decode_reads_the_cache_of_every_sequence() -> None:
    model = ideal("llama-3.1-8b", "h100")
    read = part(model, Step(sequences=10, context=999), "attention").size_bytes
    assert read == pytest.approx(kv_bytes(model.shape, 10 * 1_001))


def test_few_tokens_touch_few_experts_and_many_touch_all() -> None:
    model = ideal("mixtral-8x7b", "h100", 2)
    one, two, many = (part(model, Step(sequences=n), "experts").size_bytes for n in (1, 2, 1_000))
    assert one == pytest.approx(many * 2 / 8)
    assert two == pytest.approx(many * (1 - (6 / 8) ** 2))


def test_latent_attention_is_copied_and_heads_are_dealt_out() -> None:
    assert [ideal("deepseek-v3", "h200", n).kv_share for n in (1, 8)] == [1.0, 1.0]
    assert [ideal("llama-3.1-70b", "h100", n).kv_share for n in (1, 4, 8)] == [1.0, 0.25, 0.125]
    assert ideal("qwen3-30b-a3b", "h100", 8).kv_share == 0.25  # four heads: each is on two GPUs


def test_eight_bit_weights_are_computed_as_such_only_where_hardware_can() -> None:
    shape = model_shape("llama-3.1-8b", "fp8")
    on_h100, on_a100 = (CostModel(shape, hardware(gpu), 1, IDEAL) for gpu in ("h100", "a100"))
    in_16_bit = ideal("llama-3.1-8b", "h100")
    long = Step(Chunk(8_000))
    assert part(on_h100, long, "layers").seconds == pytest.approx(part(in_16_bit, long, "layers").seconds / 2, rel=0.01)
    assert part(on_a100, long, "layers").seconds == pytest.approx(
        part(ideal("llama-3.1-8b", "a100"), long, "layers").seconds
    )


def test_tensor_parallelism_exchanges_two_vectors_a_layer() -> None:
    model = ideal("llama-3.1-70b", "h100", 4)
    sent = part(model, Step(Chunk(1_000)), "all-reduce").size_bytes
    assert sent == 2 * 80 * 1_000 * 8_192 * 2 * 2 * 3 / 4
    assert part(ideal("llama-3.1-70b", "h200", 1), Step(Chunk(1_000)), "all-reduce").seconds == 0.0


def test_a_slow_link_makes_a_prompt_bound_by_the_interconnect() -> None:
    model = CostModel(model_shape("llama-3.1-70b"), hardware("l40s"), 8)
    assert model.step(Step(Chunk(4_096))).bound is Bound.INTERCONNECT


def test_room_for_the_cache_is_what_weights_and_reserve_leave() -> None:
    model = CostModel(model_shape("llama-3.1-70b"), hardware("h100"), 4)
    assert model.kv_room_each == pytest.approx(0.9 * 80e9 - 4e9 - weight_bytes(model.shape) / 4)
    assert CostModel(model_shape("llama-3.1-70b"), hardware("h100"), 1).kv_room_each < 0


@pytest.mark.parametrize(
    ("name", "gpu", "sizes"),
    [
        ("llama-3.1-70b", "h100", (1, 2, 4, 8)),
        ("qwen2.5-7b", "h100", (1, 2, 4)),  # 28 heads
        ("qwen3-30b-a3b", "h100", (1, 2, 4, 8)),  # more GPUs than key and value heads: those are copied
    ],
)
def test_a_model_is_split_where_its_heads_allow(name: str, gpu: str, sizes: tuple[int, ...]) -> None:
    assert tensor_parallel_sizes(model_shape(name), hardware(gpu)) == sizes


models = st.sampled_from(known_models())
gpus = st.sampled_from(sorted(HARDWARE))
amounts = st.integers(0, 4_000)


@settings(max_examples=60, deadline=None)
@given(models, gpus, amounts, amounts, amounts, amounts)
def test_more_to_do_never_takes_less_time(
    name: str, gpu: str, tokens: int, sequences: int, context: int, more: int
) -> None:
    model = CostModel(model_shape(name), hardware(gpu), 2)

    def seconds(tokens: int, before: int, sequences: int, context: int) -> float:
        return model.step(Step(Chunk(tokens, before), sequences, context)).seconds

    least = seconds(tokens, 0, sequences, context)
    assert 0 < least < math.inf
    for harder in (
        seconds(tokens + more, 0, sequences, context),
        seconds(tokens, more, sequences, context),
        seconds(tokens, 0, sequences + more, context),
        seconds(tokens, 0, sequences, context + more),
    ):
        assert harder >= least * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(models, gpus, amounts, amounts)
def test_no_step_is_faster_than_the_hardware(name: str, gpu: str, tokens: int, sequences: int) -> None:
    step = Step(Chunk(tokens), sequences, 500)
    kind = hardware(gpu)
    cost = CostModel(model_shape(name), kind).step(step)
    flops, size_bytes = (sum(getattr(each, key) for each in cost.parts) for key in ("flops", "size_bytes"))
    assert cost.seconds >= max(flops / (kind.fp8_flops or kind.flops), size_bytes / kind.bandwidth)


@pytest.mark.parametrize(
    ("name", "near"), [("h10", "H100"), ("H-100", "H100"), ("a100-80g", "A100"), ("l40", "L40S"), ("b20", "B200")]
)
def test_unknown_hardware_gets_the_nearest_known_names(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean .*{near}"):
        hardware(name)


def test_a_cpu_has_no_figures_before_it_is_measured() -> None:
    with pytest.raises(ConfigError, match="before one is measured"):
        hardware("cpu")
