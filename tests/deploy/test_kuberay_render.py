"""Rendered manifests: what KubeRay's schema, Serve's schema and Ray's autoscaler make of them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import Config, load_config, parse_config
from cluster.errors import ConfigError
from deploy.kuberay_render import default_image, kuberay_manifests
from deploy.taken_ports import TAKEN_PORTS
from tests.deploy.crd_schema import Schema, crd_schema, mistakes

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
SHIPPED = ["kuberay.yaml", "kuberay-cpu.yaml"]
IMAGE = "baton-serve:test"


@pytest.fixture(scope="module")
def schema() -> Schema:
    folder = os.environ.get("BATON_CRD_DIR")
    if not folder:
        pytest.skip("BATON_CRD_DIR does not name a folder with ray.io_rayservices.yaml")
    return crd_schema(Path(folder) / "ray.io_rayservices.yaml", "v1")


def ray_service(example: str = "kuberay.yaml") -> dict[str, Any]:
    return dict(kuberay_manifests(load_config(EXAMPLES / example), IMAGE)[0])


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["rayClusterConfig"]
    return spec


def groups(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster_spec(manifest)["workerGroupSpecs"]}


def changed(**sections: dict[str, Any]) -> Config:
    raw = yaml.safe_load((EXAMPLES / "kuberay-cpu.yaml").read_text())
    for section, values in sections.items():
        raw.setdefault(section, {}).update(values)
    return parse_config(raw)


@pytest.mark.parametrize("example", SHIPPED)
def test_kuberay_accepts_the_shipped_examples(example: str, schema: Schema) -> None:
    assert mistakes(ray_service(example), schema) == []


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ("maxReplica", "spec.rayClusterConfig.workerGroupSpecs.0: Additional properties are not allowed"),
        ("restartPolicies", "spec.rayClusterConfig.workerGroupSpecs.0.template.spec: Additional properties"),
        ("replicas", "spec.rayClusterConfig.workerGroupSpecs.0.replicas: 'one' is not of type 'integer'"),
    ],
)
def test_a_wrong_field_is_refused_with_its_path(wrong: str, refusal: str, schema: Schema) -> None:
    manifest = copy.deepcopy(ray_service())
    group = cluster_spec(manifest)["workerGroupSpecs"][0]
    (group["template"]["spec"] if wrong == "restartPolicies" else group)[wrong] = "one"
    assert any(line.startswith(refusal) for line in mistakes(manifest, schema))


def test_what_an_api_server_fills_in_or_takes_in_two_forms_is_no_mistake(schema: Schema) -> None:
    manifest = copy.deepcopy(ray_service())
    group = cluster_spec(manifest)["workerGroupSpecs"][0]
    del group["maxReplicas"]  # has a default
    group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = 4  # an integer or a string
    assert mistakes(manifest, schema) == []


@pytest.mark.parametrize("example", SHIPPED)
def test_serve_accepts_the_application_and_baton_its_arguments(example: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(yaml.safe_load(ray_service(example)["spec"]["serveConfigV2"]))
    application = parsed.applications[0]
    assert application.import_path == "deploy.app:build"
    assert (parsed.http_options.host, parsed.http_options.port) == ("0.0.0.0", 8000)
    assert parse_config(application.args["config"]) == load_config(EXAMPLES / example)


@pytest.mark.parametrize("example", SHIPPED)
def test_pods_that_share_no_memory_and_have_no_rdma_do_not_try_nixl_first(example: str) -> None:
    assert load_config(EXAMPLES / example).kv_transfer.prefer == "grpc"


def test_each_part_has_a_group_that_alone_offers_its_resource() -> None:
    offered = {name: group["resources"] for name, group in groups(ray_service()).items()}
    assert offered == {
        "router": {"CPU": "4", "baton_router": "1"},
        "prefill": {"CPU": "8", "GPU": "1", "baton_prefill": "1", "accelerator_type:H100": "1"},
        "decode": {"CPU": "8", "GPU": "1", "baton_decode": "1", "accelerator_type:H200": "1"},
    }


def test_rays_autoscaler_reads_bounds_and_resources_of_each_group() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    custom_resource = {
        "metadata": {"name": "baton", "namespace": "default"},
        "spec": cluster_spec(ray_service()),
        "status": {"head": {"podIP": "10.0.0.1"}},
    }
    derived = _derive_autoscaling_config_from_ray_cr(custom_resource)["available_node_types"]
    decode = derived["decode"]
    assert (decode["min_workers"], decode["max_workers"]) == (2, 8)
    assert decode["resources"] == {"CPU": 8, "GPU": 1, "baton_decode": 1, "accelerator_type:H200": 1}


def test_a_pool_of_fixed_size_needs_no_autoscaler() -> None:
    fixed = changed(prefill={"autoscale": None, "replicas": 3}, decode={"autoscale": None})
    manifest: dict[str, Any] = dict(kuberay_manifests(fixed, IMAGE)[0])
    prefill = groups(manifest)["prefill"]
    assert [prefill[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [3, 3, 3]
    assert cluster_spec(manifest)["enableInTreeAutoscaling"] is False


@pytest.mark.parametrize("deadline_s", [30.0, 600.0, 1000.5])
def test_pods_outlive_their_drain_and_the_streams_that_pass_through_them(deadline_s: float) -> None:
    config = changed(router={"request_deadline_s": deadline_s}, decode={"drain_s": 700.0})
    manifest: dict[str, Any] = dict(kuberay_manifests(config, IMAGE)[0])
    drains = {"router": config.router.drain_s, "prefill": config.prefill.drain_s, "decode": config.decode.drain_s}
    graces = []
    for name, group in groups(manifest).items():
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        within_s = int(command[command.index("--within") + 1])
        assert max(drains[name], deadline_s) + 45 <= within_s == spec["terminationGracePeriodSeconds"] - 15
        graces.append(spec["terminationGracePeriodSeconds"])
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] == max(graces)


def test_every_pod_takes_the_ticket_secret_from_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_TICKET_SECRET", "do-not-write-me-anywhere")
    manifest = ray_service()
    assert "do-not-write-me" not in yaml.safe_dump(manifest)
    for group in [cluster_spec(manifest)["headGroupSpec"], *groups(manifest).values()]:
        environment = {each["name"]: each for each in group["template"]["spec"]["containers"][0]["env"]}
        reference = {"secretKeyRef": {"name": "baton-secrets", "key": "ticket"}}
        assert environment["BATON_TICKET_SECRET"] == {"name": "BATON_TICKET_SECRET", "valueFrom": reference}


def test_every_pod_takes_the_stores_password_and_perhaps_a_hubs_token_from_the_secret() -> None:
    config = changed(store={"url": "redis://redis:6379/0", "password_env": "BATON_REDIS_PASSWORD"})
    manifest: dict[str, Any] = dict(kuberay_manifests(config, IMAGE)[0])
    for group in [cluster_spec(manifest)["headGroupSpec"], *groups(manifest).values()]:
        environment = {each["name"]: each for each in group["template"]["spec"]["containers"][0]["env"]}
        references = {
            name: environment[name]["valueFrom"]["secretKeyRef"] for name in ("BATON_REDIS_PASSWORD", "HF_TOKEN")
        }
        assert references == {
            "BATON_REDIS_PASSWORD": {"name": "baton-cpu-secrets", "key": "redis"},
            "HF_TOKEN": {"name": "baton-cpu-secrets", "key": "hf-token", "optional": True},
        }


@pytest.mark.parametrize(("example", "dockerfile"), [("kuberay.yaml", "gpu"), ("kuberay-cpu.yaml", "cpu")])
def test_the_default_image_is_the_one_that_is_built_for_the_device(example: str, dockerfile: str) -> None:
    text = (EXAMPLES.parent / f"docker/{dockerfile}.Dockerfile").read_text()
    assert f" -t {default_image(load_config(EXAMPLES / example))} ." in text


def test_a_router_may_listen_for_calls_where_only_the_heads_pod_has_the_port_taken() -> None:
    assert kuberay_manifests(changed(router={"grpc_port": 8500}), IMAGE)


def test_the_list_of_taken_ports_has_those_that_ray_and_haproxy_take_by_default() -> None:
    from ray._private import ray_constants
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT
    from ray.serve._private import constants as serve

    head = {
        ray_constants.DEFAULT_PORT,
        ray_constants.DEFAULT_DASHBOARD_PORT,
        AUTOSCALER_METRIC_PORT,
        DASHBOARD_METRIC_PORT,
        serve.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT,
        serve.RAY_SERVE_FALLBACK_PROXY_GRPC_PORT,
    }
    every = {
        ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT,
        serve.RAY_SERVE_HAPROXY_STATS_PORT,
        serve.RAY_SERVE_HAPROXY_METRICS_PORT,
    }
    assert {each.port for each in TAKEN_PORTS if each.head} >= head
    assert {each.port for each in TAKEN_PORTS if not each.head} == {*every, 8080}  # KubeRay's own choice


def test_the_grpc_service_selects_the_router_pods() -> None:
    service: dict[str, Any] = dict(kuberay_manifests(load_config(EXAMPLES / "kuberay.yaml"), IMAGE)[1])
    selector = service["spec"]["selector"]
    router = groups(ray_service())["router"]["template"]
    assert selector.items() <= router["metadata"]["labels"].items()
    assert not selector.items() <= groups(ray_service())["decode"]["template"]["metadata"]["labels"].items()
    assert {"name": "grpc", "containerPort": 9000} in router["spec"]["containers"][0]["ports"]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"prefill": {"listen_host": "127.0.0.1"}}, "prefill.listen_host: 127.0.0.1 is reached from its own pod only"),
        ({"decode": {"listen_host": "localhost"}}, "decode.listen_host: localhost is reached from its own pod only"),
        ({"router": {"http_host": "::1"}}, "router.http_host: ::1 is reached from its own pod only"),
        ({"router": {"grpc_host": "127.0.1.1"}}, "router.grpc_host: 127.0.1.1 is reached from its own pod only"),
        ({"router": {"grpc_port": 0}}, "router.grpc_port: 0 is another port at every start"),
        (
            {"router": {"http_port": 52365}},
            "router.http_port: 52365 is held by Ray's agent in every pod; choose a",
        ),
        ({"router": {"grpc_port": 9101}}, "router.grpc_port: 9101 is held by HAProxy's metrics in every pod"),
        ({"router": {"http_port": 8500}}, "router.http_port: 8500 is held by Serve's fallback proxy in the head's pod"),
        ({"decode": {"resources": {}}}, "decode.resources: name one that no other part has, as {baton_decode: 1}"),
        ({"decode": {"resources": {"baton_prefill": 1}}}, "prefill.resources: name one that no other part has"),
        ({"model": {"path": "./weights"}}, "model.path: ./weights is a place on this machine"),
        ({"engine": {"options": {"hf_token": "hf_x"}}}, "engine.options.hf_token: would stand in the manifest"),
        (
            {"security": {"keys_file": "/k/keys.yaml"}},
            "security.keys_file: nothing mounts /k/keys.yaml into these pods",
        ),
        ({"placement": {"profile": "/k/p"}}, "placement.profile: nothing mounts /k/p into these pods"),
        ({"security": {"tls": {"cert": "/k/c", "key": "/k/k"}}}, "security.tls.cert: nothing mounts /k/c into"),
        (
            {"security": {"tls": {"cert": "/k/c", "key": "/k/k", "client_ca": "/k/a"}}},
            "security.tls.client_ca: nothing mounts /k/a into",
        ),
        (
            {"security": {"cluster_tls": {"cert": "/k/c", "key": "/k/k", "ca": "/k/a"}}},
            "security.cluster_tls.ca: nothing mounts /k/a into",
        ),
        (
            {"store": {"url": "redis://redis:6379/0", "password_env": "REDIS_PASSWORD"}},
            "store.password_env: KubeRay keeps REDIS_PASSWORD for itself",
        ),
    ],
)
def test_what_cannot_run_in_kubernetes_is_refused_by_its_key(sections: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kuberay_manifests(changed(**sections), IMAGE)
    assert line in str(refused.value)
    assert "hf_x" not in str(refused.value)
