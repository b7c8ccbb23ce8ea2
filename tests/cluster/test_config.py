"""Mistakes in the configuration: each names its key and what would be valid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import load_config, parse_config, secret
from cluster.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "examples").glob("*.yaml"))
SMALLEST: dict[str, Any] = {"model": {"path": "m"}}


def refusal(raw: object) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(raw, origin="file.yaml")
    return str(refused.value)


def with_key(path: str, value: object) -> dict[str, Any]:
    """The smallest configuration with one more key, given by its dotted path."""
    raw: dict[str, Any] = {"model": dict(SMALLEST["model"])}
    *sections, key = path.split(".")
    section = raw
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return raw


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_shipped_examples_load(path: Path) -> None:
    assert load_config(path).model.served_name


def test_defaults_are_enough_but_for_the_model() -> None:
    assert parse_config(SMALLEST).router.grpc_port == 9000


def test_what_is_parsed_survives_being_written_and_read_again() -> None:
    config = load_config(EXAMPLES[0])
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("modle", {}, ["modle: unknown key", "did you mean model?", "valid here:", "prefill"]),
        ("prefill.replica", 2, ["prefill.replica: unknown key", "did you mean replicas?"]),
        ("prefill.autoscale.max", 2, ["prefill.autoscale.max: unknown key", "max_replicas"]),
        ("engine.simulated.steps", 1, ["engine.simulated.steps: unknown key", "step_s"]),
        ("engine.kind", "sglang", ["engine.kind", "'vllm' or 'simulated'", "'sglang'"]),
        ("engine.block_size", 20, ["engine.block_size", "16, 32, 64 or 128", "20"]),
        ("router.http_port", 70000, ["router.http_port", "65535", "70000"]),
        ("prefill.replicas", 0, ["prefill.replicas", "greater than or equal to 1"]),
        ("prefill.replicas", "2", ["prefill.replicas", "integer", "'2'"]),
        ("prefill.autoscale", {"min_replicas": -1}, ["prefill.autoscale.min_replicas", "greater than or equal to 0"]),
        (
            "prefill.autoscale",
            {"min_replicas": 0},
            ["min_replicas is 0", "most_wait_s (60) to engine.start_deadline_s (240"],
        ),
        (
            "autoscaling.budget",
            1.5,
            ["autoscaling.budget is 1.5", "smallest pools that serve (prefill 1, decode 1) cost 2"],
        ),
        (
            "autoscaling",
            {"ratio_least": 3.0, "ratio_most": 2.0},
            ["autoscaling", "ratio_least 3 is above ratio_most 2"],
        ),
        ("autoscaling.stale_s", 0.5, ["autoscaling", "stale_s 0.5 is not above period_s 1"]),
        ("decode.autoscale", {"min_replicas": 3, "max_replicas": 2}, ["decode.autoscale", "3 is above max_replicas 2"]),
        (
            "decode",
            {"replicas": 5, "autoscale": {"max_replicas": 8}},
            ["decode", "replicas is 5, but autoscale sizes the pool: leave one of them out"],
        ),
        ("name", "Not_A_Name", ["name", "pattern"]),
        ("engine.options", {"model": "x"}, ["engine", "model: set by Baton from other keys"]),
        ("decode.engine_options", {"dtype": "x"}, ["decode", "dtype: set by Baton from other keys"]),
        ("engine.device", "gpu", ["prefill.gpus_per_replica is 0", "engine.device is gpu"]),
        ("kv_transfer.forbid", ["nixl", "grpc"], ["kv_transfer", "forbid names every transport: leave at least one"]),
        ("kv_transfer", {"prefer": "nixl", "forbid": ["nixl"]}, ["kv_transfer", "prefer is nixl, which forbid names"]),
        ("kv_transfer.forbid", ["tcp"], ["kv_transfer.forbid.0", "'nixl' or 'grpc'"]),
        ("kv_transfer.circuit_most_s", 1.0, ["kv_transfer", "circuit_most_s 1 is below circuit_open_s 5"]),
        (
            "kv_transfer.grpc",
            {"mib_per_s": 1.0, "floor_s": 30.0},
            ["kv_transfer.grpc", "floor_s 30 is above ceiling_s"],
        ),
        ("decode.gpus_per_replica", 1, ["decode.gpus_per_replica is 1", "engine.device is cpu"]),
        ("kv_transfer.connector", "nixl", ["kv_transfer.connector", "'baton' or 'vllm-nixl'"]),
        ("router.replicas", 2, ["router.replicas is 2, but store.url is memory://", "redis://HOST:PORT/0"]),
        ("store.url", "mem", ["store", "memory://, redis://HOST:PORT/DB or rediss://HOST:PORT/DB"]),
        ("store.url", "redis://", ["redis://HOST:PORT/DB"]),
        ("store.url", "redis://h:99999/0", ["Port out of range"]),
        ("store.url", "redis://h/0?x=1", ["only a database number"]),
        ("store.password_env", "P", ["memory:// needs none"]),
        ("store.lease_s", 0.2, ["lease_s 0.2 is less than 3 times period_s 0.1"]),
        ("router.grpc_port", 8000, ["router", "grpc_port 8000 is also http_port"]),
        ("router.silent_after_s", 0.1, ["router.silent_after_s", "0.2"]),
        ("router.retry_share", 1.5, ["router.retry_share", "less than or equal to 1"]),
        ("router.lost_workers_most", 0, ["router.lost_workers_most", "greater than or equal to 1"]),
        ("placement.slow", {"share": 1.0}, ["placement.slow.share", "less than 1"]),
        ("placement.slow", {"leave_s": 60.0, "leave_most_s": 30.0}, ["leave_most_s 30 is below leave_s 60"]),
        ("admission.tenants", {"a": {"wieght": 2}}, ["admission.tenants.a.wieght: unknown key", "mean weight?"]),
        ("admission.tenants", {"a b": {}}, ["admission.tenants.a b", "pattern"]),
        ("admission.tenants", {"a": {"weight": 0.0}}, ["admission.tenants.a.weight", "0.01"]),
        ("admission.tenants", {"a": {"classes": ["x"]}}, ["a: x is no class", "interactive, standard, batch"]),
        ("admission.default_class", "x", ["default_class: x is no class; valid: interactive, standard, batch"]),
        ("admission.classes", ["a", "a"], ["each name once"]),
        ("admission.queue", {"class_reserve": 0.5}, ["0.5 for each of 3 classes is more than the whole queue"]),
    ],
)
def test_a_mistake_names_its_key_and_what_is_valid(path: str, value: object, says: list[str]) -> None:
    text = refusal(with_key(path, value))
    assert text.startswith("file.yaml: ")
    assert [part for part in says if part not in text] == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "path",
    [
        "engine.stall_after_s", "router.request_deadline_s", "decode.drain_s", "autoscaling.budget",
        "placement.start.step_s", "kv_transfer.nixl", "prefill.resources", "admission.tenants", "store.period_s",
    ],
)  # fmt: skip
def test_no_number_is_endless(path: str, value: float) -> None:
    nested = {
        "kv_transfer.nixl": {"mib_per_s": value},
        "prefill.resources": {"disk": value},
        "admission.tenants": {"acme": {"weight": value}},
    }
    text = refusal(with_key(path, nested.get(path, value)))
    assert path in text
    assert "finite number" in text


@pytest.mark.parametrize(
    ("transfer", "says"),
    [
        ({"chunk_pipelining": True}, "chunk_pipelining"),
        ({"prefer": "grpc"}, "prefer: grpc"),
        ({"prefer": "grpc", "forbid": ["nixl"]}, "prefer: grpc, forbid: [nixl]"),
    ],
)
def test_what_the_stock_connector_cannot_do_is_refused(transfer: dict[str, Any], says: str) -> None:
    assert parse_config(SMALLEST | {"kv_transfer": transfer}).kv_transfer.first_token_from_prefill
    text = refusal(SMALLEST | {"kv_transfer": transfer | {"connector": "vllm-nixl"}})
    assert f"kv_transfer: connector vllm-nixl cannot do {says}:" in text


def test_keys_that_the_stock_connector_has_no_use_for_do_no_harm() -> None:
    transfer = {"connector": "vllm-nixl", "forbid": ["grpc"], "circuit_open_s": 2.0, "lease_s": 60.0}
    assert not parse_config(SMALLEST | {"kv_transfer": transfer}).kv_transfer.first_token_from_prefill


def test_a_simulated_engine_has_no_stock_connector() -> None:
    raw = SMALLEST | {"engine": {"kind": "simulated"}, "kv_transfer": {"connector": "vllm-nixl"}}
    assert "engine.kind is simulated: use connector: baton" in refusal(raw)


def test_pools_that_could_not_hand_over_to_each_other_are_refused_with_the_way_out() -> None:
    """Each pull would be refused for the layout, and decode would compute every prompt again."""
    unequal = {"engine": {"device": "gpu"}, "prefill": {"gpus_per_replica": 4}, "decode": {"gpus_per_replica": 8}}
    text = refusal(SMALLEST | unequal)
    assert "decode.gpus_per_replica is 8, but prefill.gpus_per_replica is 4" in text
    assert "kv_transfer.connector: vllm-nixl" in text
    assert parse_config(SMALLEST | unequal | {"kv_transfer": {"connector": "vllm-nixl"}})
    assert parse_config(SMALLEST | unequal | {"decode": {"gpus_per_replica": 4}})
    assert parse_config(SMALLEST | unequal | {"engine": {"device": "gpu", "kind": "simulated"}})


def scaled(budget: float, least: int, prefill_may_decode: bool) -> dict[str, Any]:
    """Both pools from `least` replicas on, of decode for 8 each, of prefill for 4."""
    return SMALLEST | {
        "autoscaling": {"budget": budget},
        "admission": {"queue": {"most_wait_s": 300.0}},
        "router": {"prefill_may_decode": prefill_may_decode},
        "prefill": {"autoscale": {"min_replicas": least, "max_replicas": 9, "cost": 4.0}},
        "decode": {"autoscale": {"min_replicas": least, "max_replicas": 9, "cost": 8.0}},
    }


@pytest.mark.parametrize(
    ("least", "prefill_may_decode", "enough", "sizes"),
    [
        (0, False, 8.0, "prefill 0, decode 1"),
        (0, True, 4.0, "prefill 1, decode 0"),
        (1, False, 12.0, "prefill 1, decode 1"),
        (1, True, 12.0, "prefill 1, decode 1"),
    ],
)
def test_a_budget_that_never_allows_a_worker_to_serve_is_refused(
    least: int, prefill_may_decode: bool, enough: float, sizes: str
) -> None:
    """Requests would be held for a worker that never begins."""
    text = refusal(scaled(enough - 1, least, prefill_may_decode))
    assert f"the smallest pools that serve ({sizes}) cost {enough:g}" in text
    assert parse_config(scaled(enough, least, prefill_may_decode)).autoscaling.budget == enough


def test_ports_that_are_taken_as_they_come_are_not_the_same() -> None:
    assert parse_config(SMALLEST | {"router": {"http_port": 0, "grpc_port": 0}}).router.grpc_port == 0


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    text = refusal(with_key("store.url", "redis://:hunter2-hunter2@h:6379/0"))
    assert "password_env" in text
    assert "hunter2" not in text


def test_a_missing_model_is_named() -> None:
    assert refusal({}) == "file.yaml: model: required, but missing"


def test_every_mistake_gets_a_line_of_its_own() -> None:
    text = refusal({"model": {"path": "m"}, "engin": {}, "router": {"replicas": 0}})
    assert [line.split(": ")[1] for line in text.splitlines()] == ["router.replicas", "engin"]


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_anything_but_a_mapping_is_refused(raw: object) -> None:
    assert "expected a mapping with the keys name, model" in refusal(raw)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_broken_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: [unclosed\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: not valid YAML: .*line 2"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("content", "says"), [(b"\xff\xfe\x00", "not UTF-8 text: .* at byte 0"), (b"model: \x07", "not valid YAML")]
)
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path / "c.yaml")


def test_a_configuration_cannot_be_changed() -> None:
    config = parse_config(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        config.model.path = "other"


def test_a_secret_must_be_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_TICKET_SECRET", "short")
    with pytest.raises(ConfigError, match="BATON_TICKET_SECRET: needs a secret of at least 16 bytes"):
        secret("BATON_TICKET_SECRET")
    monkeypatch.setenv("BATON_TICKET_SECRET", "x" * 16)
    assert secret("BATON_TICKET_SECRET") == b"x" * 16
