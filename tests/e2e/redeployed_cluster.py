"""Run as a program: a cluster as `baton up` makes it, deployed anew and scaled on command.

Argument: the configuration file. Each line it reads is a command as JSON, each line it writes the answer:
`{"deploy": {section: values}}` changes the configuration and `{"scale": {pool: replicas}}` the size of pools; both
answer once Serve is at rest again. Ends with its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from cluster.config import parse_config
from deploy.serve_cluster import APPLICATION, ServeCluster

START_S = 180.0
SETTLED_S = 120.0


def deploy(raw: dict[str, Any]) -> None:
    """As Serve does for a new version of the application."""
    from ray import serve

    from deploy.app import compose

    app = compose(parse_config(raw))
    serve.run_many([serve.RunTarget(app, name=APPLICATION, route_prefix="/", external_scaler_enabled=True)])
    settle()


def scale(sizes: dict[str, int]) -> None:
    """As Serve's own scaling API and its autoscaler do: nothing else changes."""
    import ray
    from ray.serve._private.common import DeploymentID
    from ray.serve.context import _get_global_client

    controller = _get_global_client()._controller
    for pool, replicas in sizes.items():
        ray.get(controller.update_deployment_replicas.remote(DeploymentID(pool, APPLICATION), replicas))
    settle(sizes)


def settle(sizes: dict[str, int] | None = None) -> None:
    """Waits until every deployment has only running replicas."""
    give_up = time.monotonic() + SETTLED_S
    while not at_rest(sizes or {}):
        if time.monotonic() > give_up:
            raise TimeoutError("Serve is still busy with the change")
        time.sleep(0.2)


def at_rest(sizes: dict[str, int]) -> bool:
    from ray import serve

    deployments = serve.status().applications[APPLICATION].deployments
    return all(
        d.status == "HEALTHY"
        and {state for state, count in d.replica_states.items() if count} == {"RUNNING"}
        and d.replica_states["RUNNING"] == sizes.get(name, d.replica_states["RUNNING"])
        for name, d in deployments.items()
    )


def answer(content: object) -> None:
    print(json.dumps(content), flush=True)


def main(path: Path) -> None:
    raw: dict[str, Any] = yaml.safe_load(path.read_text())
    cluster = ServeCluster(parse_config(raw), lambda line: print(line, file=sys.stderr, flush=True))
    try:
        cluster.start(START_S)
        answer({"ready": True})
        for line in sys.stdin:
            command = json.loads(line)
            if "deploy" in command:
                for section, values in command["deploy"].items():
                    raw.setdefault(section, {}).update(values)
                deploy(raw)
            else:
                scale(command["scale"])
            answer({"done": True})
    finally:
        cluster.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' own interrupt closes the standard input
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    main(Path(sys.argv[1]))
