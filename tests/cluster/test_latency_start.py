"""What placement assumes of pools that were not measured yet."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.config import Config
from cluster.config_placement import LatencyStart
from cluster.cost_model import CostModel
from cluster.engine import Role
from cluster.engine_profile import EngineProfile, Measured, PromptTime, StepTime, cpu_hardware, write_profile
from cluster.errors import ConfigError
from cluster.hardware import GUESSED, HARDWARE, hardware
from cluster.latency_model import LatencyModel, Prefill
from cluster.latency_start import first_guess, linear_start
from cluster.model_config import model_shape
from cluster.model_size import kv_bytes_per_token

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
GPU = {"gpus_per_replica": 1}


def config(model: str = MODEL, device: str = "gpu", **sections: dict[str, Any]) -> Config:
    pool: dict[str, Any] = dict(GPU) if device == "gpu" else {}
    return Config.model_validate(
        {
            "model": {"path": model},
            "engine": {"device": device, **sections.pop("engine", {})},
            "prefill": pool | sections.pop("prefill", {}),
            "decode": pool | sections.pop("decode", {}),
            **sections,
        }
    )


def profile(path: Path, model: str = "llama-3.1-8b", **hardware_fields: Any) -> str:
    measured = Measured((PromptTime(512, 0.1), PromptTime(2_048, 0.3)), (StepTime(1, 512, 0.02),))
    kept = replace(cpu_hardware(64e9), **hardware_fields) if hardware_fields else cpu_hardware(64e9)
    write_profile(EngineProfile(model, 1, kept, GUESSED, 0.25, 0.1, measured), path)
    return str(path)


def test_the_straight_lines_meet_the_cost_model_where_they_were_laid() -> None:
    engine = CostModel(model_shape(MODEL), hardware("H100"))
    start = linear_start(engine)
    assert start.prefill_s + 2_048 * start.prefill_token_s == pytest.approx(engine.prefill_s(2_048))
    assert start.step_s + 33 * start.step_sequence_s == pytest.approx(engine.decode_s(33, 1_024))
    assert start.step_s + start.step_sequence_s == pytest.approx(engine.decode_s(1, 1_024))


@pytest.mark.parametrize(
    ("model", "gpus", "paths"), [("llama-3.1-70b", 4, 4), ("qwen3-30b-a3b", 8, 4), ("deepseek-v3", 8, 1)]
)
def test_a_cache_moves_over_as_many_paths_as_it_has_different_parts(model: str, gpus: int, paths: int) -> None:
    """What several GPUs have copies of moves as often: over the network it is no faster than one part."""
    shape = model_shape(model)
    alone = linear_start(CostModel(shape, hardware("H200")))
    together = linear_start(CostModel(shape, hardware("H200"), gpus))
    assert together.transfer_mib_per_s == pytest.approx(paths * alone.transfer_mib_per_s)


def test_what_a_request_spends_outside_of_the_engine_comes_on_top_and_stays_within_the_bounds() -> None:
    engine = CostModel(model_shape(MODEL), hardware("H100"))
    assert linear_start(engine, 0.25).prefill_s == pytest.approx(0.25 + linear_start(engine).prefill_s)
    with pytest.raises(ValidationError, match="prefill_s"):
        linear_start(engine, -10.0)


@pytest.mark.parametrize("name", HARDWARE)
def test_every_known_accelerator_gives_figures_that_can_be_learnt_from(name: str) -> None:
    start = linear_start(CostModel(model_shape(MODEL), hardware(name)))
    assert min(start.prefill_token_s, start.step_s, start.step_sequence_s) > 0


def test_pools_on_different_hardware_start_from_different_times() -> None:
    guess = first_guess(config(prefill={"accelerator_type": "L40S"}, decode={"accelerator_type": "H200"}))
    assert guess.starts[Role.PREFILL].prefill_token_s > 2 * guess.starts[Role.DECODE].prefill_token_s
    assert guess.starts[Role.PREFILL].step_s > 2 * guess.starts[Role.DECODE].step_s


def test_what_the_configuration_says_comes_first(tmp_path: Path) -> None:
    said = {"start": {"prefill_token_s": 0.5}, "profile": profile(tmp_path / "profile.yaml")}
    guess = first_guess(config(placement=said, prefill={"accelerator_type": "H100"}))
    assert guess.starts == dict.fromkeys(Role, LatencyStart(prefill_token_s=0.5))


def test_a_profile_comes_before_the_table(tmp_path: Path) -> None:
    on_h100 = profile(tmp_path / "profile.yaml", name="H100", accelerator_type="H100")
    h100, h200 = {"accelerator_type": "H100"}, {"accelerator_type": "H200"}
    measured = first_guess(config(prefill=h100, decode=h200, placement={"profile": on_h100}))
    guessed = first_guess(config(prefill=h100, decode=h200))
    assert measured.starts[Role.PREFILL].prefill_s >= 0.25 > guessed.starts[Role.PREFILL].prefill_s
    assert measured.starts[Role.DECODE] == guessed.starts[Role.DECODE], "the profile is of other hardware"


def test_a_cpus_profile_speaks_of_pools_without_accelerators(tmp_path: Path) -> None:
    of_cpu = {"profile": profile(tmp_path / "profile.yaml")}
    assert first_guess(config(device="cpu", placement=of_cpu)).starts[Role.DECODE] != LatencyStart()
    assert first_guess(config(placement=of_cpu)).starts[Role.DECODE] == LatencyStart()


@pytest.mark.parametrize("sections", [{}, {"engine": {"kind": "simulated"}}])
def test_where_nothing_is_known_the_defaults_stand(sections: dict[str, Any]) -> None:
    assert first_guess(config(device="cpu", **sections)).starts == dict.fromkeys(Role, LatencyStart())


def test_a_family_that_is_not_known_starts_from_the_defaults_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        guess = first_guess(config("somebody/something", prefill={"accelerator_type": "H100"}))
    assert guess.starts == dict.fromkeys(Role, LatencyStart())
    assert guess.block_bytes is None
    assert "placement starts from the defaults" in caplog.text


def test_a_block_is_as_large_as_its_tokens_keys_and_values() -> None:
    guess = first_guess(config(engine={"block_size": 64}))
    assert guess.block_bytes == 64 * kv_bytes_per_token(model_shape(MODEL)) == 64 * 2 * 8 * 128 * 2 * 32


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is of the model qwen3-8b, not of llama-3\.1-8b; measure this one"):
        first_guess(config(placement={"profile": profile(tmp_path / "profile.yaml", "qwen3-8b")}))


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        first_guess(config(placement={"profile": str(tmp_path / "nothing.yaml")}))


def test_predictions_of_a_new_worker_are_its_pools_start() -> None:
    start = LatencyStart(prefill_s=0.5, prefill_token_s=0.001)
    latency = LatencyModel(LatencyStart(), 60.0, {"prefill": start})
    latency.add(0, "prefill")
    latency.add(1, "decode")
    assert latency.usual_prefill_s(0, Prefill(0.0, 0.0, 100.0, 100.0)) == pytest.approx(0.6)
    assert latency.asking_s(np.array([0, 1])) == pytest.approx([0.5, LatencyStart().prefill_s])
