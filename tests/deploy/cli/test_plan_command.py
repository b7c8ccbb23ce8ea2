"""`baton plan`: one document in three forms, what runs it, and refusals that name the bound or the nearest name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import load_config, parse_config
from cluster.engine_profile import EngineProfile, Measured, PromptTime, StepTime, cpu_hardware, profile_document
from cluster.hardware import GUESSED
from tests.deploy.cli.conftest import Baton

LOAD = ("--rate", "10", "--prompt-tokens", "2000", "--output-tokens", "200")
GOALS = ("--ttft", "2", "--itl", "0.05")
ASKED = ("plan", "llama-3.1-8b", "-w", "h100", *LOAD, *GOALS)
NO_LOAD = ("plan", "llama-3.1-8b", "-w", "h100", *GOALS)


async def document(baton: Baton, *more: str) -> dict[str, Any]:
    ended = await baton(*ASKED, "-o", "json", *more)
    assert (ended.code, ended.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


async def test_json_holds_both_ways_and_the_choice(baton: Baton) -> None:
    plan = await document(baton, "--price", "2")
    assert (plan["apiVersion"], plan["kind"]) == ("baton/v1", "Plan")
    assert plan["model"]["parameters"] == 8_030_261_248
    assert plan["model"]["kvBytesPerToken"] == 131_072
    assert plan["goals"] == {"ttftS": 2.0, "itlS": 0.05, "percentile": 95.0}
    apart, whole = plan["disaggregated"], plan["whole"]
    assert [pool["role"] for pool in apart["pools"]] == ["prefill", "decode"]
    assert [pool["role"] for pool in whole["pools"]] == ["whole"]
    assert apart["transfer"]["bytesPerS"] == pytest.approx(10 * 2_000 * 131_072, rel=0.01)
    for way in (apart, whole):
        assert way["gpus"] == sum(pool["gpus"] for pool in way["pools"])
        assert way["dollarsPerHour"] == 2 * way["gpus"]
        assert way["ttftS"]["p50"] <= way["ttftS"]["p95"] <= min(way["ttftS"]["p99"], 2.0)
        assert way["itlS"]["p95"] <= 0.05
    assert plan[plan["chosen"]]["dollarsPerHour"] == min(apart["dollarsPerHour"], whole["dollarsPerHour"])
    assert plan["reasons"] is None


async def test_yaml_is_the_same_document(baton: Baton) -> None:
    as_yaml = await baton(*ASKED, "-o", "yaml")
    assert yaml.safe_load(as_yaml.stdout) == await document(baton)


async def test_the_table_is_plain_when_piped_and_names_what_is_assumed(baton: Baton) -> None:
    ended = await baton(*ASKED)
    lines = ended.stdout.splitlines()
    assert (ended.code, lines[0].split()[:4]) == (0, ["POOL", "REPLICAS", "GPUS", "TP"])
    assert any(line.startswith("disaggregated ") for line in lines)
    assert any(line.startswith("whole ") for line in lines)
    assert "efficiencies are guesses: nothing was measured on this hardware (`baton profile`)" in lines
    assert ended.stdout.isascii()


async def test_why_gives_each_number_its_reason(baton: Baton) -> None:
    reasons = (await document(baton, "--why", "--mode", "disaggregated"))["reasons"]
    assert {"prefill replicas", "decode replicas", "transfer"} <= {each["number"] for each in reasons}
    lines = (await baton(*ASKED, "--why")).stdout.splitlines()
    assert any(line.split() == ["NUMBER", "VALUE", "WHY"] for line in lines)


@pytest.mark.parametrize("mode", ["disaggregated", "whole"])
async def test_the_emitted_configuration_validates(mode: str, baton: Baton, tmp_path: Path) -> None:
    ended = await baton(*ASKED, "--mode", mode, "--emit", "config")
    file = tmp_path / "planned.yaml"
    file.write_text(ended.stdout)
    assert load_config(file).model.path == "meta-llama/Llama-3.1-8B-Instruct"
    assert (await baton("config", "validate", str(file))).code == 0
    as_json = await baton(*ASKED, "--mode", mode, "--emit", "config", "-o", "json")
    assert parse_config(json.loads(as_json.stdout)) == load_config(file)


async def test_a_worker_that_only_stands_by_is_told(baton: Baton) -> None:
    whole = await baton(*ASKED, "--mode", "whole", "--emit", "config")
    apart = await baton(*ASKED, "--mode", "disaggregated", "--emit", "config")
    assert whole.stderr.startswith("baton: one prefill worker is added to the plan")
    assert apart.stderr == ""


async def test_the_emitted_manifests_are_those_of_the_configuration(baton: Baton, tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    file.write_text((await baton(*ASKED, "--emit", "config")).stdout)
    rendered = await baton("config", "render", "kuberay", str(file), "--image", "registry/baton:7")
    emitted = await baton(*ASKED, "--emit", "kuberay", "--image", "registry/baton:7")
    assert (emitted.code, emitted.stdout) == (0, rendered.stdout)
    as_json = await baton(*ASKED, "--emit", "kuberay", "-o", "json")
    assert json.loads(as_json.stdout)["kind"] == "List"


async def test_a_model_of_ones_own_is_read_and_named_in_the_configuration(baton: Baton, tmp_path: Path) -> None:
    keys = {"model_type": "llama", "hidden_size": 2_048, "intermediate_size": 8_192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "vocab_size": 32_000, "max_position_embeddings": 8_192}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(keys))
    for given in (tmp_path, tmp_path / "config.json"):
        ended = await baton("plan", str(given), *ASKED[2:], "--emit", "config")
        assert yaml.safe_load(ended.stdout)["model"]["path"] == str(tmp_path)


async def test_a_trace_stands_for_rate_and_lengths(baton: Baton, tmp_path: Path) -> None:
    lines = [{"timestamp": at * 500, "input_length": 1_000, "output_length": 100} for at in range(200)]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    ended = await baton(*NO_LOAD, "--trace", str(file), "-o", "json")
    load = json.loads(ended.stdout)["load"]
    assert (load["requestsPerS"], load["meanPromptTokens"], load["meanOutputTokens"]) == (
        pytest.approx(2.0, rel=0.02), 1_000, 100,
    )  # fmt: skip


async def test_prices_are_by_hardware(baton: Baton) -> None:
    plan = await document(baton, "--prefill-hardware", "l40s", "--price", "L40S=1", "--price", "4")
    prefill, decode = plan["disaggregated"]["pools"]
    assert (prefill["hardware"], decode["hardware"]) == ("L40S", "H100")
    assert plan["disaggregated"]["dollarsPerHour"] == prefill["gpus"] + 4 * decode["gpus"]
    assert not any("costs" in line for line in plan["assumptions"])


async def test_a_price_that_was_said_is_no_assumption_though_it_be_the_usual_one(baton: Baton) -> None:
    assert any("a GPU of H100 costs $3" in line for line in (await document(baton))["assumptions"])
    for said in ("3", "h100=3"):
        assert not any("costs" in line for line in (await document(baton, "--price", said))["assumptions"])


def profile_text() -> str:
    measured = Measured((PromptTime(64, 0.1), PromptTime(128, 0.2)), (StepTime(1, 64, 0.01),))
    return yaml.safe_dump(profile_document(EngineProfile("mine", 1, cpu_hardware(64e9), GUESSED, 0.01, 0.05, measured)))


async def on_cpus(baton: Baton, tmp_path: Path, *more: str) -> dict[str, Any]:
    keys = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 1_024, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 2_048, "max_position_embeddings": 8_192}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(keys))
    load = ("--rate", "0.1", "--prompt-tokens", "200", "--output-tokens", "20", "--ttft", "9", "--itl", "9")
    ended = await baton("plan", str(tmp_path), "-w", "cpu", *load, "-o", "json", *more)
    assert ended.code == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


async def test_the_price_of_a_cpu_is_taken_however_it_is_written(baton: Baton, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(profile_text())
    profile = ("--profile", str(tmp_path / "p.yaml"))
    plain = await on_cpus(baton, tmp_path, *profile)
    assert any("a machine of CPUs costs $1 an hour" in line for line in plain["assumptions"])
    for said in ("cpu=0.5", "CPU=0.5"):
        priced = await on_cpus(baton, tmp_path, *profile, "--price", said)
        assert priced["whole"]["dollarsPerHour"] == plain["whole"]["dollarsPerHour"] / 2
        assert not any("costs" in line for line in priced["assumptions"])


async def test_a_profile_may_come_through_a_pipe(baton: Baton, tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.write(writes, profile_text().encode())
    os.close(writes)
    try:
        plan = await on_cpus(baton, tmp_path, "--profile", f"/dev/fd/{reads}")
    finally:
        os.close(reads)
    assert plan["assumptions"][-1].startswith(f"times are those of /dev/fd/{reads}: mine on CPU")


@pytest.mark.parametrize(("weights", "quantization"), [("fp8", "fp8_per_tensor"), ("bf16", None)])
async def test_engines_hold_their_weights_as_planned(weights: str, quantization: str | None, baton: Baton) -> None:
    emitted = await baton(*ASKED, "--weights", weights, "--emit", "config")
    assert yaml.safe_load(emitted.stdout)["engine"]["options"].get("quantization") == quantization


async def test_smaller_weights_and_cache_hold_more(baton: Baton) -> None:
    plain = (await document(baton))["disaggregated"]["pools"][1]
    small = (await document(baton, "--weights", "fp8", "--kv-cache", "fp8"))["disaggregated"]["pools"][1]
    assert small["weightBytesPerGpu"] < 0.6 * plain["weightBytesPerGpu"] * plain["tensorParallel"]
    assert small["maxSequences"] > 1.5 * plain["maxSequences"] / plain["tensorParallel"]
    emitted = await baton(*ASKED, "--kv-cache", "fp8", "--emit", "config")
    assert yaml.safe_load(emitted.stdout)["engine"]["options"]["kv_cache_dtype"] == "fp8"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "llama-3-8b", *ASKED[2:]], "model 'llama-3-8b' is not known; did you mean llama-3.1-8b"),
        (["plan", "llama-3.1-8b", "-w", "h10", *LOAD, *GOALS], "hardware 'h10' is not known; did you mean H100"),
        ([*ASKED, "--price", "h10=3"], "hardware 'h10' is not known; did you mean H100"),
        ([*ASKED, "--price", "cheap"], "--price cheap: expected US dollars an hour"),
        ([*ASKED, "--prompt-p95", "100"], "--prompt-p95: lengths with a mean of 2000 tokens"),
        ([*ASKED, "--network", "nan"], "--network nan: must be above 0"),
        ([*ASKED, "--percentile", "100"], "--percentile 100: must be above 0, at most 99"),
        ([*ASKED, "--prefix-hits", "30"], "--prefix-hits 30: a share, from 0 to 1"),
        ([*ASKED, "--trace", "t.jsonl"], "--prompt-tokens, --output-tokens: the lengths come from --trace"),
        ([*NO_LOAD, "--trace", "none.jsonl"], "none.jsonl: cannot be read"),
        ([*NO_LOAD, "--rate", "10"], "what is the load?"),
        ([*NO_LOAD, "--rate", "1", "--prompt-tokens", "200000", "--output-tokens", "1"], "llama-3.1-8b takes 131,072"),
        ([*ASKED[:-2], "--itl", "0"], "--itl 0: must be above 0"),
        ([*ASKED, "--weights", "int4", "--emit", "config"], "name a checkpoint in int4, or leave --weights out"),
    ],
)
async def test_what_cannot_be_meant_exits_2(arguments: list[str], line: str, baton: Baton) -> None:
    ended = await baton(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert line in ended.stderr


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        (
            ("llama-3.1-405b", *LOAD, *GOALS),
            ["no plan: the weights of llama-3.1-405b take 811.7 GB, but 8 x H100 have"],
        ),
        (("llama-3.1-8b", *LOAD, "--ttft", "0.02", "--itl", "0.05"), ["TTFT 0.02 s: a prompt of", "bound by"]),
        (("llama-3.1-8b", *LOAD, "--ttft", "2", "--itl", "0.001"), ["ITL 1 ms: a step of one sequence", "too long"]),
        (("llama-3.1-8b", *LOAD, *GOALS, "--rate", "500", "--max-gpus", "4"), ["more than the 4 allowed"]),
    ],
)
async def test_what_no_cluster_does_exits_1_and_names_the_bound(
    changed: tuple[str, ...], lines: list[str], baton: Baton
) -> None:
    ended = await baton("plan", changed[0], "-w", "h100", *changed[1:])
    assert (ended.code, ended.stdout) == (1, "")
    assert all(line in ended.stderr for line in lines)
    assert all(line.startswith("baton: no plan: ") for line in ended.stderr.splitlines())
