"""The cost model's figures fitted to times that are known, and the file that carries them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster.cost_model import CostModel
from cluster.engine_profile import (
    CPU,
    EngineProfile,
    Measured,
    PromptTime,
    StepTime,
    cpu_hardware,
    fitted,
    profile_document,
    read_profile,
    write_profile,
)
from cluster.errors import ConfigError
from cluster.hardware import GUESSED, Efficiency, Hardware, hardware
from cluster.model_config import model_shape

SHAPE = model_shape("llama-3.1-8b", None)
LENGTHS, BATCHES = (128, 512, 2048, 8192), (1, 4, 16, 64)


def measured(kind: Hardware, efficiency: Efficiency, edge_s: float) -> Measured:
    """As an engine would give them that does exactly what the model says."""
    engine = CostModel(SHAPE, kind, 1, efficiency)
    prompts = tuple(PromptTime(tokens, edge_s + engine.prefill_s(tokens)) for tokens in LENGTHS)
    steps = tuple(StepTime(count, 100, engine.decode_s(count, 100)) for count in BATCHES)
    return Measured(prompts, steps, 20e9)


@pytest.mark.parametrize(
    ("compute", "memory", "step_s", "edge_s"),
    [(0.6, 0.8, 0.002, 0.02), (0.3, 0.5, 0.01, 0.05), (0.85, 0.9, 0.0005, 0.003)],
)
def test_an_engine_that_does_what_the_model_says_is_found_again(
    compute: float, memory: float, step_s: float, edge_s: float
) -> None:
    h100 = hardware("h100")
    true = replace(GUESSED, compute=compute, memory=memory, step_s=step_s)
    profile = fitted(SHAPE, h100, 1, measured(h100, true, edge_s))
    assert profile.error < 0.02
    assert profile.efficiency.compute == pytest.approx(compute, rel=0.15)
    again = CostModel(SHAPE, profile.hardware, 1, profile.efficiency)
    before = CostModel(SHAPE, h100, 1, true)
    assert again.prefill_s(4096) == pytest.approx(before.prefill_s(4096), rel=0.1)
    assert again.decode_s(32, 100) == pytest.approx(before.decode_s(32, 100), rel=0.1)


def test_a_gpu_never_does_more_than_its_peaks() -> None:
    prompts = tuple(PromptTime(tokens, 1e-6 * tokens) for tokens in LENGTHS)
    steps = tuple(StepTime(count, 100, 1e-5) for count in BATCHES)
    profile = fitted(SHAPE, hardware("h100"), 1, Measured(prompts, steps))
    assert profile.efficiency.compute <= 1.0
    assert profile.efficiency.memory <= 1.0
    assert profile.error > 0.2, "and says that it cannot be"


def test_what_a_cpu_was_seen_to_do_is_its_peak() -> None:
    slow = cpu_hardware(64e9)
    true = replace(GUESSED, compute=0.5, memory=2.0, layer_s=0.0)
    profile = fitted(SHAPE, slow, 1, measured(slow, true, 0.01))
    assert profile.hardware.name == CPU
    assert (profile.efficiency.compute, profile.efficiency.memory) == (1.0, 1.0)
    assert profile.hardware.flops == pytest.approx(0.5 * slow.flops, rel=0.1)
    assert profile.hardware.network * profile.efficiency.link == pytest.approx(20e9)


def test_the_links_within_a_machine_stay_what_they_were_fitted_with() -> None:
    h100 = hardware("h100")
    engine = CostModel(SHAPE, h100, 4, GUESSED)
    prompts = tuple(PromptTime(tokens, 0.01 + engine.prefill_s(tokens)) for tokens in LENGTHS)
    steps = tuple(StepTime(count, 100, engine.decode_s(count, 100)) for count in BATCHES)
    profile = fitted(SHAPE, h100, 4, Measured(prompts, steps, 20e9))
    again = CostModel(SHAPE, profile.hardware, 4, profile.efficiency)
    missed = [again.prefill_s(each.tokens) + profile.edge_s - each.seconds for each in prompts]
    assert max(abs(late) / each.seconds for late, each in zip(missed, prompts, strict=True)) < 0.01
    assert profile.efficiency.link == GUESSED.link
    assert profile.hardware.network * profile.efficiency.link == pytest.approx(20e9)


def test_without_a_copy_the_network_stays_as_it_was() -> None:
    h100 = hardware("h100")
    told = replace(measured(h100, GUESSED, 0.01), copy_bytes_per_s=None)
    profile = fitted(SHAPE, h100, 1, told)
    assert (profile.hardware.network, profile.efficiency.link) == (h100.network, GUESSED.link)


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="too little was measured"):
        fitted(SHAPE, hardware("h100"), 1, Measured((PromptTime(1, 1.0),), ()))


@pytest.fixture(scope="module")
def profile() -> EngineProfile:
    h100 = hardware("h100")
    return fitted(SHAPE, h100, 1, measured(h100, GUESSED, 0.01))


def test_a_profile_comes_back_from_its_file(profile: EngineProfile, tmp_path: Path) -> None:
    write_profile(profile, tmp_path / "p.yaml")
    assert read_profile(tmp_path / "p.yaml") == profile


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kind": "Shopping"}, "is no EngineProfile"),
        ({"hardware": {}}, "is no profile"),
        ({"edgeS": "soon"}, "is no profile"),
        ({"edgeS": 0.0}, "edgeS is 0.0: must be above 0"),
        ({"edgeS": float("nan")}, "edgeS is nan"),
        ({"efficiency": {"compute": -1.0}}, "efficiency compute is -1.0"),
    ],
    ids=str,
)
def test_a_file_that_is_no_profile_is_named_with_its_mistake(
    profile: EngineProfile, tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(profile_document(profile) | change))
    with pytest.raises(ConfigError, match=complaint):
        read_profile(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"p\.yaml: cannot be read"):
        read_profile(tmp_path / "p.yaml")
