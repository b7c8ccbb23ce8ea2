"""Values that the Helm chart refuses: misspelt, misshapen, or such that nothing could run."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from tests.deploy.rendered_chart import manifests, needs_helm


@needs_helm
@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("routr={}", "additional properties 'routr' not allowed"),
        ("decode.memroy=1", "at '/decode': additional properties 'memroy' not allowed"),
        ("config.decode.replica=3", "at '/config/decode': additional properties 'replica' not allowed"),
        ("config.engine.block_size=48", "at '/config/engine/block_size'"),
        ('image.digest="latest"', "at '/image/digest'"),
        ("config.model=null", "at '/config': missing property 'model'"),
    ],
)
def test_a_misspelt_or_misshapen_value_is_refused_by_its_place(setting: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        manifests("cpu.yaml", setting)
    assert line in str(refused.value)


IMPOSSIBLE = [
    ("h100-4-8.yaml", "decode.gpus=2", "decode.gpus: 2 a pod, but config.decode.gpus_per_replica, the tensor para"),
    ("h100-4-8.yaml", "config.decode.gpus_per_replica=0", "config.decode.gpus_per_replica: is 0, but config.engine"),
    (
        "h100-4-8.yaml",
        "config.decode.gpus_per_replica=2",
        "config.decode.gpus_per_replica: is 2, but config.prefill.gpus_per_replica is 4",
    ),
    ("cpu.yaml", "prefill.gpus=1", "prefill: pods with 1 GPUs, but config.engine.device is cpu"),
    ("cpu.yaml", "decode.terminationGracePeriodSeconds=90", "decode.terminationGracePeriodSeconds: 90 s, but what its"),
    ("cpu.yaml", "router.terminationGracePeriodSeconds=1259", "router.terminationGracePeriodSeconds: 1259 s, but"),
    ("cpu.yaml", "upgrade.clusterDeletionDelaySeconds=60", "upgrade.clusterDeletionDelaySeconds: 60 s would end the"),
    ("cpu.yaml", "config.router.replicas=2", "config.router.replicas: 2 routers share their state in Redis"),
    ("cpu.yaml", "gcsFaultTolerance.enabled=true", "gcsFaultTolerance.redisAddress: the GCS keeps its tables in Redis"),
    ("l40s-h100.yaml", 'secrets.redis.name=""', "secrets.redis.name: names no Secret, and config.store.password_env"),
    ("l40s-h100.yaml", 'config.store.password_env="REDIS_PASSWORD"', "config.store.password_env: KubeRay keeps REDIS_"),
    ("cpu.yaml", "autoscaler.enabled=false", "autoscaler.enabled: is false, but decode may grow from 1 to 2 pods"),
    ("cpu.yaml", "config.decode.autoscale.min_replicas=3", "config.decode.autoscale: min_replicas 3 is above max_rep"),
    ("cpu.yaml", "config.decode.replicas=3", "config.decode.replicas: is 3, but config.decode.autoscale sizes"),
    ("cpu.yaml", "decode.minAvailable=2", "decode.minAvailable: 2 pods, but there may be only 1"),
    ("cpu.yaml", 'config.prefill.listen_host="127.0.0.1"', "config.prefill.listen_host: 127.0.0.1 is reached from its"),
    ("cpu.yaml", 'config.router.http_host="localhost"', "config.router.http_host: localhost is reached from its own"),
    ("cpu.yaml", "config.router.grpc_port=0", "config.router.grpc_port: a Service needs a fixed port, not 0"),
    ("cpu.yaml", "config.router.grpc_port=8000", "config.router.grpc_port: 8000 is also config.router.http_port"),
    ("cpu.yaml", "config.router.http_port=8080", "config.router.http_port: 8080 is held by Ray's metrics in every pod"),
    ("cpu.yaml", "config.router.grpc_port=8404", "config.router.grpc_port: 8404 is held by HAProxy's statistics in"),
    (
        "cpu.yaml",
        "config.router.http_port=8265",
        "config.router.http_port: 8265 is held by Ray's dashboard in the head",
    ),
    ("cpu.yaml", 'config.decode.resources={"baton_prefill": 1, "baton_decode": null}', "config.decode.resources: name"),
    ("cpu.yaml", "config.decode.drain_s=null", "config.decode.drain_s: has to stay set"),
    ("cpu.yaml", 'config.model.path="./weights"', "config.model.path: ./weights is a place on some machine"),
    (
        "cpu.yaml",
        'config.engine.options={"hf_token": "hf_x"}',
        "config.engine.options.hf_token: would stand in the man",
    ),
    ("cpu.yaml", 'config.name="0baton"', 'config.name: "0baton" must have 1 to 42 lower case letters'),
]


@needs_helm
@pytest.mark.parametrize(("example", "setting", "line"), IMPOSSIBLE)
def test_values_that_cannot_work_stop_with_the_reason(example: str, setting: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        manifests(example, setting)
    assert line in str(refused.value)
    assert "hf_x" not in str(refused.value)


@needs_helm
def test_a_router_may_listen_for_calls_where_only_the_heads_pod_has_the_port_taken() -> None:
    assert manifests("cpu.yaml", "config.router.grpc_port=8500")


@needs_helm
def test_all_that_cannot_work_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        manifests("cpu.yaml", "config.router.replicas=2", "prefill.gpus=1", "upgrade.clusterDeletionDelaySeconds=1")
    for line in ("config.router.replicas", "prefill: pods with 1 GPUs", "upgrade.clusterDeletionDelaySeconds"):
        assert line in str(refused.value)
