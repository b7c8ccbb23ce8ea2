"""Ports that Ray and HAProxy hold in the pods of a cluster, whatever the configuration says.

One list for `kuberay_checks` and for the Helm chart, which gets it as a template that `deploy.helm_chart` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

METRICS_PORT, AGENT_PORT, GCS_PORT, DASHBOARD_PORT = 8080, 52365, 6379, 8265


@dataclass(frozen=True, slots=True)
class TakenPort:
    """`head`: in the head's pod alone, where Serve's HTTP proxy listens too, and no router."""

    port: int
    holder: str
    head: bool = False


TAKEN_PORTS = (
    TakenPort(METRICS_PORT, "Ray's metrics in every pod (KubeRay's --metrics-export-port)"),
    TakenPort(AGENT_PORT, "Ray's agent in every pod"),
    TakenPort(8404, "HAProxy's statistics in every pod"),
    TakenPort(9101, "HAProxy's metrics in every pod"),
    TakenPort(GCS_PORT, "Ray's GCS in the head's pod", head=True),
    TakenPort(DASHBOARD_PORT, "Ray's dashboard in the head's pod", head=True),
    TakenPort(10001, "Ray's client server in the head's pod", head=True),
    TakenPort(44217, "Ray's autoscaler in the head's pod", head=True),
    TakenPort(44227, "Ray's dashboard in the head's pod", head=True),
    TakenPort(8500, "Serve's fallback proxy in the head's pod", head=True),
    TakenPort(9500, "Serve's fallback proxy in the head's pod", head=True),
)


def port_holders(http_port: int, grpc_port: int) -> Iterator[tuple[str, TakenPort]]:
    """Each of the router's ports that somebody else holds where it has to listen, by its key."""
    for taken in TAKEN_PORTS:
        if taken.port == http_port:
            yield "http_port", taken
        if taken.port == grpc_port and not taken.head:
            yield "grpc_port", taken
