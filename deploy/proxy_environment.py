"""What Ray Serve's HAProxy must find in the environment of every process of the cluster, so that it cuts no stream and
keeps none whose client has left."""

from __future__ import annotations

import math
import os
import sysconfig
from collections.abc import Collection
from pathlib import Path

from cluster.config import RouterConfig
from deploy.free_port import free_ports

_MARGIN_S = 30
_CHOICE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def proxy_environment(router: RouterConfig) -> dict[str, str]:
    """Every router that comes or goes makes HAProxy start a new process; the old one ends with its last stream, or
    after this time, by default two minutes. A client that no longer reads keeps its connection there as long."""
    longest_s = str(math.ceil(router.request_deadline_s) + _MARGIN_S)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": longest_s,
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": longest_s,
    }


def own_proxy(folder: Path, without: Collection[int] = ()) -> dict[str, str]:
    """Program, files and ports of a HAProxy that shares this machine with those of other clusters. `without`: ports
    that the cluster itself will listen on."""
    metrics, stats, fallback_http, fallback_grpc = free_ports(4, without)
    return {
        **proxy_binary(),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }


def proxy_binary() -> dict[str, str]:
    """`baton-haproxy` of this installation, unless somebody chose another; the images name their own."""
    chosen = os.environ.get(_CHOICE) or str(Path(sysconfig.get_path("scripts")) / "baton-haproxy")
    return {_CHOICE: chosen}
