"""What of a configuration cannot run in Kubernetes, or must not be written into a manifest.

Pure: a configuration in, sentences out. Knows nothing of how a manifest is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.config import Config, RouterConfig
from cluster.config_security import SecurityConfig, is_loopback
from deploy.taken_ports import port_holders

_KUBERAYS_OWN = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")


def kuberay_mistakes(config: Config) -> Iterator[str]:
    """One line for each key of `config` that cannot work in Kubernetes: what is wrong, and what to write instead."""
    if not config.name[0].isalpha():
        yield f"name: {config.name!r} must start with a letter to name a Kubernetes service"
    if config.model.path.startswith((".", "~")):
        yield f"model.path: {config.model.path} is a place on this machine; use a path inside the image or a hub name"
    yield from _loopback_mistakes(config)
    yield from _port_mistakes(config.router)
    yield from _placement_mistakes(config)
    yield from _file_mistakes(config.security)
    if config.placement.profile is not None:
        yield f"placement.profile: nothing mounts {config.placement.profile} into these pods; give `start` instead"
    if config.store.password_env in _KUBERAYS_OWN:
        yield f"store.password_env: KubeRay keeps {config.store.password_env} for itself; use BATON_REDIS_PASSWORD"
    for key, options in (
        ("engine.options", config.engine.options),
        ("prefill.engine_options", config.prefill.engine_options),
        ("decode.engine_options", config.decode.engine_options),
    ):
        yield from _secret_mistakes(key, options)


def _loopback_mistakes(config: Config) -> Iterator[str]:
    hosts = {
        "prefill.listen_host": config.prefill.listen_host,
        "decode.listen_host": config.decode.listen_host,
        "router.http_host": config.router.http_host,
        "router.grpc_host": config.router.grpc_host,
    }
    for key, host in hosts.items():
        if is_loopback(host):
            yield f"{key}: {host} is reached from its own pod only; use 0.0.0.0 to listen on the pod's address"


def _port_mistakes(router: RouterConfig) -> Iterator[str]:
    for key, port in (("router.http_port", router.http_port), ("router.grpc_port", router.grpc_port)):
        if port == 0:
            yield f"{key}: 0 is another port at every start; a Service needs a fixed one"
    for key, taken in port_holders(router.http_port, router.grpc_port):
        yield f"router.{key}: {taken.port} is held by {taken.holder}; choose another port"


def _placement_mistakes(config: Config) -> Iterator[str]:
    parts = {"router": config.router.resources, "prefill": config.prefill.resources, "decode": config.decode.resources}
    for part, resources in parts.items():
        elsewhere = {name for other, offered in parts.items() if other != part for name in offered}
        if not resources.keys() - elsewhere:
            yield f"{part}.resources: name one that no other part has, as {{baton_{part}: 1}}; it places the replicas"


def _file_mistakes(security: SecurityConfig) -> Iterator[str]:
    paths = {"keys_file": security.keys_file}
    if tls := security.tls:
        paths |= {"tls.cert": tls.cert, "tls.key": tls.key, "tls.client_ca": tls.client_ca}
    if member := security.cluster_tls:
        paths |= {"cluster_tls.cert": member.cert, "cluster_tls.key": member.key, "cluster_tls.ca": member.ca}
    for key, path in paths.items():
        if path is not None:
            yield f"security.{key}: nothing mounts {path} into these pods; deploy/helm/baton does, from a Secret"


def _secret_mistakes(key: str, options: Mapping[str, Any]) -> Iterator[str]:
    for name in options:
        if name.endswith(("token", "secret", "password", "api_key", "access_key")):
            yield f"{key}.{name}: would stand in the manifest for all to read; mount it from a Secret instead"
