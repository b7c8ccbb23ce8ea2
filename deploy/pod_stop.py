"""What a pod does before Kubernetes ends it: Serve moves its replicas elsewhere, the pod waits until it is empty.

Then it stops Ray itself: a shell that is a pod's first process does not hear Kubernetes' signal.

Runs as the preStop hook of a worker pod, beside Ray. Knows Ray's command line, Linux' /proc, and nothing of Baton.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Announce = Callable[[int], str]

_REPLICA = b"ray::ServeReplica:"  # Ray gives an actor's process the title of its class
_ESTABLISHED = "01"
_LOOK_S = 0.5
_RAY_S = 30.0
_STOP = ("ray", "stop", "--grace-period", "5")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1, and what to do on stderr, when the pod is not empty in time or Ray refuses to empty it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.pod_stop", description=__doc__)
    parser.add_argument("--within", type=int, required=True, help="seconds until Kubernetes ends the pod")
    parser.add_argument("--http-port", type=int, required=True, help="of Serve's proxy")
    given = parser.parse_args(arguments)
    reasons = [stop(given.within, given.http_port, announce_to_ray), _run(_STOP)]
    for reason in filter(None, reasons):
        print(reason, file=sys.stderr)
    return int(any(reasons))


def stop(
    within_s: int,
    http_port: int,
    announce: Announce,
    proc: Path = Path("/proc"),
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Waits until neither a replica nor a client's connection is left in the pod. Returns what went wrong, or "".

    Where Ray refuses, replicas would never go: then only the clients are waited for.
    """
    end = now() + within_s
    refusal = announce(within_s)
    while now() < end:
        replicas = 0 if refusal else sum(1 for _ in _replicas(proc))
        if not replicas and not _connections(proc, http_port):
            return refusal
        sleep(_LOOK_S)
    return refusal or f"still busy after {within_s} s: raise terminationGracePeriodSeconds, or lower the drain"


def announce_to_ray(within_s: int) -> str:
    """Tells Ray that this pod goes; Serve then starts its replicas elsewhere and drains them here. "" when accepted."""
    return _run([
        "ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "Kubernetes stops the pod",
        "--deadline-remaining-seconds", str(within_s),
    ])  # fmt: skip


def _run(command: Sequence[str]) -> str:
    """What went wrong, or ""."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RAY_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command[:2])}: {error}"
    return "" if done.returncode == 0 else f"{' '.join(command[:2])}: {done.stderr.strip() or done.returncode}"


def _replicas(proc: Path) -> Iterator[Path]:
    for process in proc.glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(_REPLICA):
                yield process
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


def _connections(proc: Path, port: int) -> int:
    """TCP connections of clients to `port` of this pod."""
    return sum(_established(line, port) for table in ("tcp", "tcp6") for line in _table(proc / "net" / table))


def _table(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:] if path.exists() else []  # without IPv6 there is only one


def _established(line: str, port: int) -> bool:
    _, local, _, state = line.split()[:4]
    return state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port


if __name__ == "__main__":
    sys.exit(main())
