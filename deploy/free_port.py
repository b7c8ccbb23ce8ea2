"""Ports for servers that start later, in another process: which one, and whether one can be had. Linux only."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _BEYOND = 20_000, 30_000  # Ray's workers listen below, the replicas of Serve above
_TRIES = 200


def free_port() -> int:
    """A port that nobody listens on, and that the kernel does not give away meanwhile: it takes the near end of every
    connection from a range of its own. Where that range leaves none, one that is free now. Raises `OSError`."""
    own = range(_FIRST, min(_BEYOND, int(_RANGE.read_text().split()[0])))
    for port in random.sample(own, min(_TRIES, len(own))):
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        given: int = probe.getsockname()[1]
        return given


def why_taken(host: str, port: int) -> str | None:
    """Why nobody can listen there now; None when one can. `host`: an address, an IPv6 one bare, or a name."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
