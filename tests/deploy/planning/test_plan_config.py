"""Plans as configurations: what is planned is what is configured, and validators and renderers take it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Config, parse_config
from cluster.errors import ConfigError
from cluster.hardware import hardware
from deploy.kuberay_render import kuberay_manifests
from deploy.planning.apart import Apart
from deploy.planning.plan_config import needed_quantization, plan_config
from deploy.planning.planner import Mode, Plan, make_plan
from deploy.planning.reasons import plan_reasons
from deploy.planning.whole_pool import Whole
from tests.deploy.crd_schema import crd_schema, mistakes
from tests.deploy.planning.demands import demand


def planned(mode: Mode = Mode.DISAGGREGATED, model: str = "llama-3.1-70b") -> Plan:
    return make_plan(demand(10, model=model, gpu=hardware("h100"), goals=(3.0, 0.05)), mode)


def configured(plan: Plan) -> Config:
    return plan_config(plan, "org/model")


def test_pools_are_configured_as_planned() -> None:
    plan = planned()
    config, chosen = configured(plan), plan.chosen
    assert isinstance(chosen, Apart)
    assert config.prefill.replicas == chosen.prefill.replicas
    assert config.decode.replicas == chosen.decode.replicas
    assert config.prefill.gpus_per_replica == chosen.prefill.engine.tensor_parallel
    assert config.prefill.accelerator_type == "H100"
    assert config.prefill.engine_options == {"max_num_batched_tokens": chosen.prefill.times.chunk}
    assert config.decode.engine_options == {"max_num_seqs": chosen.decode.places}
    assert config.placement.disaggregate == "auto"
    assert config.kv_transfer.connector == "baton"


def test_whole_engines_are_decode_workers_with_one_prefill_worker_in_reserve() -> None:
    plan = planned(Mode.WHOLE)
    config, chosen = configured(plan), plan.chosen
    assert isinstance(chosen, Whole)
    assert (config.prefill.replicas, config.decode.replicas) == (1, chosen.pool.replicas)
    assert config.placement.disaggregate == "never"
    places, chunk = chosen.pool.whole.places, chosen.pool.whole.times.chunk
    assert config.decode.engine_options == {"max_num_batched_tokens": chunk + places, "max_num_seqs": places}


def test_windows_are_moved_by_vllms_own_connector() -> None:
    assert configured(planned(model="gemma-2-9b")).kv_transfer.connector == "vllm-nixl"


def test_placement_starts_from_what_the_model_says() -> None:
    plan = planned()
    assert isinstance(plan.chosen, Apart)
    start = configured(plan).placement.start
    assert start.prefill_s + 8_192 * start.prefill_token_s == pytest.approx(
        plan.chosen.prefill.engine.prefill_s(8_192), rel=0.01
    )
    assert start.step_s > 0.001


@pytest.mark.parametrize(
    ("model", "weights", "made"),
    [
        ("llama-3.1-8b", None, None),
        ("llama-3.1-8b", "bf16", None),
        ("llama-3.1-8b", "fp8", "fp8_per_tensor"),
        ("deepseek-v3", "fp8", None),  # its file holds them so
    ],
)
def test_engines_make_of_the_weights_what_was_planned(model: str, weights: str | None, made: str | None) -> None:
    assert needed_quantization(model, weights) == made


@pytest.mark.parametrize(
    ("model", "weights"), [("llama-3.1-8b", "int4"), ("deepseek-v3", "bf16"), ("gpt-oss-20b", "fp8")]
)
def test_weights_that_no_engine_makes_of_the_file_are_refused(model: str, weights: str) -> None:
    with pytest.raises(ConfigError, match=f"name a checkpoint in {weights}, or leave --weights out"):
        needed_quantization(model, weights)


def test_of_a_quantisation_that_is_not_known_the_user_says_what_it_holds(tmp_path: Path) -> None:
    keys = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 1_024, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 2_048, "max_position_embeddings": 8_192,
            "quantization_config": {"quant_method": "new"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert needed_quantization(str(tmp_path), "int4") is None


@pytest.mark.engine
def test_vllm_makes_fp8_weights_under_that_name() -> None:
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig

    assert get_quantization_config("fp8_per_tensor") is OnlineQuantizationConfig


def test_the_longest_request_fits_and_the_cache_holds_it() -> None:
    plan = planned()
    assert isinstance(plan.chosen, Apart)
    length = configured(plan).model.max_model_len
    assert length is not None
    assert plan.demand.workload.longest <= length <= plan.demand.shape.longest
    assert plan.chosen.decode.engine.kv_bytes_each(length) <= plan.chosen.decode.engine.kv_room_each


@pytest.mark.parametrize("mode", [Mode.DISAGGREGATED, Mode.WHOLE])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_what_is_written_reads_back_and_renders(mode: Mode, model: str) -> None:
    config = configured(planned(mode, model))
    written = config.model_dump(mode="json", exclude_unset=True)
    assert parse_config(written) == config
    service: dict[str, Any] = dict(kuberay_manifests(config, "image:1")[0])
    groups = {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert groups["decode"]["replicas"] == config.decode.replicas
    assert groups["decode"]["resources"]["GPU"] == str(config.decode.gpus_per_replica)


def test_kuberay_accepts_what_is_rendered() -> None:
    folder = os.environ.get("BATON_CRD_DIR")
    if not folder:
        pytest.skip("BATON_CRD_DIR does not name a folder with ray.io_rayservices.yaml")
    schema = crd_schema(Path(folder) / "ray.io_rayservices.yaml", "v1")
    assert mistakes(dict(kuberay_manifests(configured(planned()), "image:1")[0]), schema) == []


@pytest.mark.parametrize("mode", [Mode.DISAGGREGATED, Mode.WHOLE])
def test_every_number_of_a_plan_has_its_reason(mode: Mode) -> None:
    plan = planned(mode)
    reasons = {each.number: each for each in plan_reasons(plan)}
    apart = {"prefill replicas", "decode replicas", "transfer", "connector", "decode step"}
    whole = {"replicas", "prompt tokens in a step", "sequences at once"}
    assert reasons.keys() >= (apart if mode is Mode.DISAGGREGATED else whole)
    assert all(each.value and each.why for each in reasons.values())


def test_a_reason_says_what_one_replica_fewer_would_cost() -> None:
    plan = make_plan(demand(60), Mode.DISAGGREGATED)
    [reason] = [each for each in plan_reasons(plan) if each.number == "prefill replicas"]
    assert isinstance(plan.chosen, Apart)
    assert reason.value == str(plan.chosen.prefill.replicas)
    ways = ("TTFT p95 would be", "there is more to do than can be done", "prompts would take")
    assert any(f"with one fewer {way}" in reason.why for way in ways)


def test_a_reason_says_why_fewer_gpus_do_not_hold_the_model() -> None:
    [reason] = [each for each in plan_reasons(planned()) if each.number == "prefill tensor parallelism"]
    assert "on 2 the weights are 2.6 GB too large for each GPU" in reason.why
