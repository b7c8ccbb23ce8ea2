"""Addresses as text: where something listens, and where this machine reaches it. Knows no sockets."""

from __future__ import annotations

_EVERYWHERE = ("0.0.0.0", "::", "[::]", "")


def host_port(host: str, port: int) -> str:
    """As gRPC and URLs take it: an IPv6 address, bare or not, in brackets."""
    bare = host.removeprefix("[").removesuffix("]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def reachable(host: str) -> str:
    """What this machine dials for what listens on `host`. A wildcard is no address; `::` too is dialled over
    IPv4, for Serve's proxy takes it for all of that, and gRPC for both."""
    return "127.0.0.1" if host in _EVERYWHERE else host
