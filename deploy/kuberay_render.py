"""A configuration as KubeRay manifests: one RayService with a worker group for each part, and the gRPC API's Service.

One pod holds one replica: Serve places a part's replicas by the custom resource that only this part's group offers.
Knows the manifests' shape; what a configuration must have for them is `kuberay_checks`' business.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from cluster.config import Config, PoolConfig
from cluster.errors import ConfigError
from deploy.document import Json
from deploy.kuberay_checks import kuberay_mistakes
from deploy.proxy_environment import proxy_environment

Manifest: TypeAlias = dict[str, Json]

IMPORT_PATH = "deploy.app:build"
SECRET_KEY = "ticket"
_GRACE_S = 60  # on top of a part's own drain: Serve ends the replica first, then Kubernetes the pod
_OBJECT_STORE_BYTES = 512 * 1024 * 1024  # Baton moves nothing through Ray's object store
_SHARED_MEMORY = "2Gi"


@dataclass(frozen=True, slots=True)
class Group:
    """One worker group. `resources` are Ray's, for one pod; `drain_s` is the longest a replica takes to end well."""

    name: str
    minimum: int
    maximum: int
    cpus: float
    gpus: int
    resources: Mapping[str, float]
    drain_s: float
    ports: Mapping[str, int]

    @property
    def grace_s(self) -> int:
        return math.ceil(self.drain_s) + _GRACE_S


def default_image() -> str:
    return f"baton-serve:{importlib.metadata.version('baton-serve')}"


def kuberay_manifests(config: Config, image: str) -> list[Manifest]:
    """The manifests that run `config` from `image`, with its secrets left to a Secret named `<name>-secrets`.

    Raises `ConfigError` with one line for each key that cannot work in Kubernetes.
    """
    if mistakes := list(kuberay_mistakes(config)):
        raise ConfigError("\n".join(mistakes))
    return [_ray_service(config, image), _grpc_service(config)]


def _ray_service(config: Config, image: str) -> Manifest:
    groups = _groups(config)
    cluster: Manifest = {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},  # a peer in Ray may run any code: only holders of the generated token may
        "enableInTreeAutoscaling": any(group.minimum != group.maximum for group in groups),
        "headGroupSpec": {
            "rayStartParams": {
                "num-cpus": "0",
                "num-gpus": "0",
                "dashboard-host": "0.0.0.0",
                "object-store-memory": str(_OBJECT_STORE_BYTES),
            },
            "template": _head_template(config, image),
        },
        "workerGroupSpecs": [_worker_group(config, image, group) for group in groups],
    }
    if cluster["enableInTreeAutoscaling"]:
        cluster["autoscalerOptions"] = {"version": "v2"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": config.name, "labels": _labels(config)},
        "spec": {
            "serveConfigV2": _serve_config(config),
            "upgradeStrategy": {"type": "NewCluster"},
            # An upgrade's old cluster stays until its longest stream could have ended.
            "rayClusterDeletionDelaySeconds": max(group.grace_s for group in groups),
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": cluster,
        },
    }


def _serve_config(config: Config) -> str:
    application: Manifest = {
        "name": "baton",
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": {"config": config.model_dump(mode="json", exclude_unset=True)},
    }
    document: Manifest = {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.router.http_host, "port": config.router.http_port},
        "applications": [application],
    }
    return str(yaml.safe_dump(document, sort_keys=False))


def _groups(config: Config) -> list[Group]:
    router = config.router
    return [
        Group(
            name="router",
            minimum=router.replicas,
            maximum=router.most_replicas,
            cpus=router.cpus_per_replica,
            gpus=0,
            resources=router.resources,
            drain_s=router.drain_s,
            ports={"grpc": router.grpc_port},
        ),
        _pool_group("prefill", config.prefill),
        _pool_group("decode", config.decode),
    ]


def _pool_group(name: str, pool: PoolConfig) -> Group:
    bounds = pool.autoscale
    resources = dict(pool.resources)
    if pool.accelerator_type:
        resources[f"accelerator_type:{pool.accelerator_type}"] = 1
    return Group(
        name=name,
        minimum=bounds.min_replicas if bounds else pool.replicas,
        maximum=pool.most_replicas,
        cpus=pool.cpus_per_replica,
        gpus=pool.gpus_per_replica,
        resources=resources,
        drain_s=pool.drain_s,
        ports={},
    )


def _worker_group(config: Config, image: str, group: Group) -> Manifest:
    gpus = {"GPU": group.gpus} if group.gpus else {}
    offered = {"CPU": math.ceil(group.cpus), **gpus, **group.resources}
    return {
        "groupName": group.name,
        "replicas": group.minimum,
        "minReplicas": group.minimum,
        "maxReplicas": group.maximum,
        "labels": {"baton/part": group.name},
        "resources": {name: f"{amount:g}" for name, amount in offered.items()},
        "rayStartParams": {"object-store-memory": str(_OBJECT_STORE_BYTES)},
        "template": _worker_template(config, image, group),
    }


def _head_template(config: Config, image: str) -> Manifest:
    ports = {"gcs-server": 6379, "dashboard": 8265, "serve": config.router.http_port}
    container = _container("ray-head", image, _environment(config), ports, {"requests": {"cpu": "1", "memory": "2Gi"}})
    return _pod(config, "head", container, _GRACE_S)


def _worker_template(config: Config, image: str, group: Group) -> Manifest:
    resources: Manifest = {"requests": {"cpu": f"{group.cpus:g}"}}
    if group.gpus:
        resources["limits"] = {"nvidia.com/gpu": group.gpus}
    ports = {"serve": config.router.http_port, **group.ports}
    container = _container("ray-worker", image, _environment(config), ports, resources)
    return _pod(config, group.name, container, group.grace_s)


def _container(
    name: str, image: str, environment: list[Json], ports: Mapping[str, int], resources: Manifest
) -> Manifest:
    return {
        "name": name,
        "image": image,
        "env": environment,
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "resources": resources,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _pod(config: Config, part: str, container: Manifest, grace_s: int) -> Manifest:
    return {
        "metadata": {"labels": {**_labels(config), "baton/part": part}},
        "spec": {
            "terminationGracePeriodSeconds": grace_s,
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}],
        },
    }


def _environment(config: Config) -> list[Json]:
    secret: Manifest = {"name": f"{config.name}-secrets", "key": SECRET_KEY}
    return [
        *({"name": name, "value": value} for name, value in proxy_environment(config.router).items()),
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": config.security.ticket_secret_env, "valueFrom": {"secretKeyRef": secret}},
    ]


def _grpc_service(config: Config) -> Manifest:
    """KubeRay makes the Service of the HTTP API; it knows no second port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{config.name}-grpc", "labels": _labels(config)},
        "spec": {
            "selector": {**_labels(config), "baton/part": "router"},
            "ports": [{"name": "grpc", "port": config.router.grpc_port, "targetPort": "grpc", "appProtocol": "grpc"}],
        },
    }


def _labels(config: Config) -> dict[str, str]:
    return {"app.kubernetes.io/name": "baton", "app.kubernetes.io/instance": config.name}
