"""The pods of a RayService: containers, environment, probes, and how they end. They have what the Helm chart gives its
pods, but for what a configuration file does not say: memory, placement, volumes.

Knows the manifests' shape, and nothing of Ray's or Serve's own settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from cluster.config import Config
from deploy.document import Json
from deploy.kuberay_groups import HEAD_GRACE_S, Group
from deploy.proxy_environment import proxy_environment
from deploy.taken_ports import AGENT_PORT, DASHBOARD_PORT, GCS_PORT, METRICS_PORT

Manifest: TypeAlias = dict[str, Json]

TICKET_KEY, REDIS_KEY, MODEL_KEY = "ticket", "redis", "hf-token"
"""Keys of the Secret `<name>-secrets`."""

_SHARED_MEMORY = "2Gi"
_RAY_ENDS_S = 15  # after the preStop hook


def labels(config: Config) -> dict[str, str]:
    """Of everything but the pods."""
    return {"app.kubernetes.io/name": "baton", "app.kubernetes.io/instance": config.name}


def selector(config: Config) -> dict[str, str]:
    """Of the pods. Not `app.kubernetes.io/name`: there that is KubeRay's, whose own Services select by it."""
    return {"baton/cluster": config.name}


def head_pod(config: Config, image: str) -> Manifest:
    ports = {
        "gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT, "serve": config.router.http_port
    }  # fmt: skip
    container = _container(config, "ray-head", image, ports)
    container["resources"] = {"requests": {"cpu": "1", "memory": "2Gi"}}
    container["readinessProbe"] = _probe({"httpGet": _ray_health()}, delay_s=10, timeout_s=5, failures=10)
    return _pod(config, "head", container, HEAD_GRACE_S)


def worker_pod(config: Config, image: str, group: Group) -> Manifest:
    ports = {"metrics": METRICS_PORT, "serve": config.router.http_port, **group.ports}
    container = _container(config, "ray-worker", image, ports)
    resources: Manifest = {"requests": {"cpu": f"{group.cpus:g}"}}
    if group.gpus:
        resources["limits"] = {"nvidia.com/gpu": group.gpus}
    container["resources"] = resources
    container["readinessProbe"] = _probe(_serves(group), delay_s=10, timeout_s=2, failures=1)
    container["lifecycle"] = {"preStop": {"exec": {"command": _stop_command(config, group)}}}
    return _pod(config, group.name, container, group.grace_s)


def _container(config: Config, name: str, image: str, ports: Mapping[str, int]) -> Manifest:
    return {
        "name": name,
        "image": image,
        "env": _environment(config),
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "livenessProbe": _probe({"httpGet": _ray_health()}, delay_s=30, timeout_s=5, failures=24),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _pod(config: Config, part: str, container: Manifest, grace_s: int) -> Manifest:
    return {
        "metadata": {"labels": {**selector(config), "baton/part": part}},
        "spec": {
            "automountServiceAccountToken": part == "head",  # for Ray's autoscaler; the others talk to no API server
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}],
        },
    }


def _environment(config: Config) -> list[Json]:
    secrets = {config.security.ticket_secret_env: TICKET_KEY}
    if config.store.password_env:
        secrets[config.store.password_env] = REDIS_KEY
    return [
        *({"name": name, "value": value} for name, value in proxy_environment(config.router).items()),
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        *(_from_secret(config, name, {"key": key}) for name, key in secrets.items()),
        # Gated models only: others start without it.
        _from_secret(config, "HF_TOKEN", {"key": MODEL_KEY, "optional": True}),
    ]


def _from_secret(config: Config, name: str, what: Manifest) -> Manifest:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": f"{config.name}-secrets", **what}}}


def _probe(how: Manifest, delay_s: int, timeout_s: int, failures: int) -> Manifest:
    return {
        **how,
        "initialDelaySeconds": delay_s,
        "periodSeconds": 5,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _ray_health() -> Manifest:
    """The raylet's, and on the head the GCS's."""
    return {"path": "/api/healthz", "port": AGENT_PORT}


def _serves(group: Group) -> Manifest:
    """A router when it sees workers: only then may a new cluster's routers take calls over gRPC. A pool's pod takes
    traffic through Serve's HTTP proxy alone."""
    if "grpc" in group.ports:
        return {"grpc": {"port": group.ports["grpc"]}}
    return {"httpGet": {"path": "/-/healthz", "port": "serve"}}


def _stop_command(config: Config, group: Group) -> list[Json]:
    within, port = str(group.grace_s - _RAY_ENDS_S), str(config.router.http_port)
    return ["python", "-m", "deploy.pod_stop", "--within", within, "--http-port", port]
