"""A configuration as KubeRay manifests: one RayService with a worker group for each part, and the gRPC API's Service.

One pod holds one replica: Serve places a part's replicas by the custom resource that only this part's group offers.
What a configuration must have for them is `kuberay_checks`' business, what is in a pod that of `kuberay_pods`.
"""

from __future__ import annotations

import importlib.metadata
import math

import yaml

from cluster.config import Config
from cluster.errors import ConfigError
from deploy.kuberay_checks import kuberay_mistakes
from deploy.kuberay_groups import Group, worker_groups
from deploy.kuberay_pods import Manifest, head_pod, labels, selector, worker_pod

IMPORT_PATH = "deploy.app:build"
_OBJECT_STORE_BYTES = 512 * 1024 * 1024  # Baton moves nothing through Ray's object store


def default_image(config: Config) -> str:
    """As deploy/docker/ is built: one image for each kind of device."""
    return f"baton-serve:{importlib.metadata.version('baton-serve')}-{config.engine.device}"


def kuberay_manifests(config: Config, image: str) -> list[Manifest]:
    """The manifests that run `config` from `image`, with its secrets left to a Secret named `<name>-secrets`.

    Its keys: `ticket`; `redis`, where `store.password_env` is set; and for a gated model `hf-token`.

    Raises `ConfigError` with one line for each key that cannot work in Kubernetes.
    """
    if mistakes := list(kuberay_mistakes(config)):
        raise ConfigError("\n".join(mistakes))
    return [_ray_service(config, image), _grpc_service(config)]


def _ray_service(config: Config, image: str) -> Manifest:
    groups = worker_groups(config)
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
            "template": head_pod(config, image),
        },
        "workerGroupSpecs": [_worker_group(config, image, group) for group in groups],
    }
    if cluster["enableInTreeAutoscaling"]:
        cluster["autoscalerOptions"] = {"version": "v2"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": config.name, "labels": labels(config)},
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
        "template": worker_pod(config, image, group),
    }


def _grpc_service(config: Config) -> Manifest:
    """KubeRay makes the Service of the HTTP API; it knows no second port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{config.name}-grpc", "labels": labels(config)},
        "spec": {
            "selector": {**selector(config), "baton/part": "router"},
            "ports": [{"name": "grpc", "port": config.router.grpc_port, "targetPort": "grpc", "appProtocol": "grpc"}],
        },
    }
