"""The environment of vLLM's processes."""

from __future__ import annotations

from pathlib import Path

from cluster.config import EngineConfig, ModelConfig
from cluster.vllm_environment import environment_for


def test_on_cpu_the_engine_stays_in_one_process_with_the_threads_of_the_config(tmp_path: Path) -> None:
    wanted = environment_for(ModelConfig(path=str(tmp_path)), EngineConfig(cpu_threads=3), {})
    assert wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert wanted["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert wanted["OMP_NUM_THREADS"] == "3"
    assert wanted["HF_HUB_OFFLINE"] == "1"


def test_on_gpu_and_with_a_hub_name_vllm_keeps_its_own_ways() -> None:
    wanted = environment_for(ModelConfig(path="org/model"), EngineConfig(device="gpu"), {})
    assert not {"VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"} & wanted.keys()


def test_what_the_operator_says_about_logging_and_plugins_stays_and_ours_is_added() -> None:
    model, engine = ModelConfig(path="org/model"), EngineConfig()
    assert "VLLM_LOGGING_LEVEL" not in environment_for(model, engine, {"VLLM_LOGGING_LEVEL": "DEBUG"})
    assert environment_for(model, engine, {"VLLM_PLUGINS": "theirs"})["VLLM_PLUGINS"] == "theirs,baton"
    assert environment_for(model, engine, {"VLLM_PLUGINS": ""})["VLLM_PLUGINS"] == "baton"
    assert "VLLM_PLUGINS" not in environment_for(model, engine, {"VLLM_PLUGINS": "baton,theirs"})
