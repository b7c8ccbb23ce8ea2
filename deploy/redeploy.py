"""A new configuration for the cluster that this process owns: deployments with a new version are replaced, in Serve's
way.

Knows Serve; who asked, and how, is `deploy.change_order`'s business.
"""

from __future__ import annotations

import time

from cluster.config import Config
from cluster.errors import StartFailed
from deploy.serve_cluster import APPLICATION, Progress, raise_on_failure, replicas_of

_POLL_S = 0.25


def redeploy(config: Config, deadline_s: float, progress: Progress) -> None:
    """Returns once all that has a new version is replaced and runs. Raises `StartFailed`: a new replica does not start,
    or not in time; Serve goes on trying."""
    from ray import serve

    from deploy.app import compose

    give_up = time.monotonic() + deadline_s
    target = serve.RunTarget(compose(config), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    shown = ""
    while True:
        status = serve.status().applications[APPLICATION]
        line = replicas_of(status)
        if line != shown:
            progress(shown := line)
        raise_on_failure(status)
        if status.status == "RUNNING" and all(_settled(each.replica_states) for each in status.deployments.values()):
            return
        if time.monotonic() > give_up:
            raise StartFailed(f"not all replaced within {deadline_s:g} s; last seen: {shown}")
        time.sleep(_POLL_S)


def _settled(states: dict[str, int]) -> bool:
    """Also where there are none: a pool may be at zero."""
    return {state for state, count in states.items() if count} <= {"RUNNING"}
