"""How Serve is told to run a pool."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import Config, parse_config
from cluster.engine import Role
from cluster.pool_options import serve_options
from cluster.scaling.frame import ScalingSetup


def config(device: str = "cpu", **pool: Any) -> Config:
    decode = {"gpus_per_replica": pool["gpus_per_replica"]} if device == "gpu" else {}
    return parse_config({"model": {"path": "m"}, "engine": {"device": device}, "prefill": pool, "decode": decode})


def options(device: str = "cpu", **pool: Any) -> dict[str, Any]:
    made = config(device, **pool)
    return serve_options(made, Role.PREFILL, "package.module:Policy")


def test_a_fixed_pool_has_its_replicas_and_resources() -> None:
    made = options(replicas=3, cpus_per_replica=2.0, resources={"fast": 1.0}, accelerator_type="H100")
    assert made["num_replicas"] == 3
    actor = made["ray_actor_options"]
    assert (actor["num_cpus"], actor["resources"], actor["accelerator_type"]) == (2.0, {"fast": 1.0}, "H100")
    assert "num_gpus" not in actor
    assert "autoscaling_config" not in made


def test_serve_waits_for_the_drain_and_the_end_of_the_engine() -> None:
    assert options(drain_s=100.0)["graceful_shutdown_timeout_s"] > 100.0


def test_one_gpu_needs_no_placement_group_and_several_are_on_one_machine() -> None:
    assert "placement_group_bundles" not in options("gpu", gpus_per_replica=1)
    made = options("gpu", gpus_per_replica=4, cpus_per_replica=2.0, accelerator_type="H100", resources={"fast": 1.0})
    assert made["ray_actor_options"]["num_gpus"] == 4
    assert made["placement_group_strategy"] == "STRICT_PACK"
    assert made["placement_group_bundles"] == [{"CPU": 2.0, "GPU": 4, "fast": 1.0, "accelerator_type:H100": 0.001}]


def test_a_scaling_pool_tells_the_policy_all_it_needs() -> None:
    made = options(autoscale={"min_replicas": 2, "max_replicas": 6})["autoscaling_config"]
    assert made["policy"]["policy_function"] == "package.module:Policy"
    kwargs = made["policy"]["policy_kwargs"]
    assert (kwargs["cluster"], kwargs["pool"]) == ("baton", "prefill")
    assert ScalingSetup.parsed(kwargs["setup"]) == ScalingSetup.of(
        config(autoscale={"min_replicas": 2, "max_replicas": 6})
    )


def test_serve_adds_no_delay_to_the_autoscalers_word_and_keeps_sizes_in_a_new_deployment() -> None:
    made = options(autoscale={"min_replicas": 2, "max_replicas": 6})["autoscaling_config"]
    assert (made["min_replicas"], made["max_replicas"]) == (2, 6)
    assert "initial_replicas" not in made  # or every new deployment would begin with that
    assert (made["upscale_delay_s"], made["downscale_delay_s"]) == (0.0, 0.0)


@pytest.mark.parametrize("pool", [{}, {"autoscale": {"max_replicas": 2}}])
def test_serve_accepts_the_options(pool: dict[str, Any]) -> None:
    serve = pytest.importorskip("ray.serve")
    made = config(**pool)
    deployment = serve.deployment(
        type("Pool", (), {}),
        name="prefill",
        **serve_options(made, Role.PREFILL, "deploy.scaling_policy:PoolSizePolicy"),
    )
    assert deployment.name == "prefill"
