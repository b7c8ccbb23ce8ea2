"""Ports for servers that start later, in another process: which ones, and whether one can be had. Linux only."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _BEYOND = 20_000, 30_000  # Ray's workers listen below, the replicas of Serve above
_TRIES = 200


def free_port() -> int:
    """See `free_ports`."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int, without: Collection[int] = ()) -> list[int]:
    """So many different ports, none of `without`, that nobody listens on, and that the kernel does not give away
    meanwhile: it takes the near end of every connection from a range of its own. Where that range leaves too few, some
    that are free now. Raises `OSError`."""
    own = range(_FIRST, min(_BEYOND, int(_RANGE.read_text().split()[0])))
    found: list[int] = []
    for port in random.sample(own, min(_TRIES, len(own))):
        if len(found) == count:
            return found
        if port not in without and _is_free(port):
            found.append(port)
    return found + _given(count - len(found), without)


def why_taken(host: str, port: int) -> str | None:
    """Why nobody can listen there now; None when one can. `host`: an address, an IPv6 one bare, or a name."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _given(count: int, without: Collection[int]) -> list[int]:
    """By the kernel; each is held until all are there, so that none comes twice."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("", 0))
            if (port := probe.getsockname()[1]) not in without:
                found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
