"""What a worker is made with: what it reads, and a version that changes with that and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from ray import serve

from cluster.config import Config, parse_config
from cluster.config_parts import version_of, worker_part
from cluster.engine import Role
from cluster.serve_version import with_version

KEY = {"id": "0" * 12, "sha256": "0" * 64, "role": "view"}
CLUSTER_TLS = {"cert": "c", "key": "k", "ca": "a"}


def config(**sections: Any) -> Config:
    return parse_config({"model": {"path": "m"}, **sections})


def decode_version(**sections: Any) -> str:
    return version_of(worker_part(config(**sections), Role.DECODE))


@pytest.mark.parametrize(
    "changed",
    [
        {"router": {"max_choices": 3}},
        {"placement": {"pins": 3}},
        {"admission": {"queue": {"max_requests": 7}}},
        {"autoscaling": {"budget": 9.0}},
        {"store": {"url": "redis://localhost:1/0"}},
        {"security": {"keys": [KEY]}},
        {"prefill": {"engine_options": {"seed": 3}}},
        {"decode": {"replicas": 3}},
        {"decode": {"autoscale": {"min_replicas": 1, "max_replicas": 3}}},
        {"decode": {"surge_percent": 100}},
    ],
)
def test_a_worker_goes_on_whatever_changes_that_it_does_not_read(changed: dict[str, Any]) -> None:
    assert version_of(config(**changed)) != version_of(config())
    assert decode_version(**changed) == decode_version()


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"model": {"path": "other"}},
        {"engine": {"block_size": 64}},
        {"kv_transfer": {"lease_s": 3.0}},
        {"observability": {"log_level": "debug"}},
        {"security": {"cluster_tls": CLUSTER_TLS}},
        {"security": {"ticket_secret_env": "OTHER"}},
        {"decode": {"engine_options": {"seed": 3}}},
        {"decode": {"drain_s": 3.0}},
        {"decode": {"cpus_per_replica": 2.0}},
    ],
)
def test_a_worker_is_replaced_when_what_it_reads_changes(changed: dict[str, Any]) -> None:
    assert decode_version(**changed) != decode_version()


def test_a_default_that_is_written_out_is_no_change() -> None:
    assert version_of(config(engine={"block_size": config().engine.block_size})) == version_of(config())


def test_the_order_of_options_is_no_change() -> None:
    assert decode_version(engine={"options": {"a": 1, "b": 2}}) == decode_version(engine={"options": {"b": 2, "a": 1}})


def test_of_every_section_it_was_decided_whether_workers_read_it() -> None:
    """A new one belongs into one of the lists above, and where no worker reads it into `worker_part`."""
    read = {"name", "model", "engine", "kv_transfer", "observability", "security", "decode"}
    unread = {"router", "placement", "admission", "autoscaling", "store", "prefill"}
    assert set(Config.model_fields) == read | unread


def test_ray_still_takes_a_version_behind_its_public_options() -> None:
    """What Serve makes of it tests/e2e/test_rolling_update.py shows."""
    made = serve.deployment(type("Part", (), {}), name="part", num_replicas=2)
    versioned = with_version(made, "7")
    assert (versioned.version, versioned.num_replicas, versioned.name) == ("7", 2, "part")
