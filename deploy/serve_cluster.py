"""A Ray cluster with Baton on it, owned by this process: start, watch it boot, stop all of it.

Knows Ray and Serve; knows nothing of terminals. What to tell the user leaves through a callback.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from cluster.config import Config
from cluster.errors import StartFailed
from cluster.host_port import host_port, reachable
from deploy.app_size import absent_accelerator, most_cpus, most_gpus, most_resources, too_few_gpus
from deploy.free_port import why_taken
from deploy.own_folder import own_folder, scratch_environment
from deploy.processes import adopt_orphans, end_descendants
from deploy.proxy_environment import own_proxy, proxy_environment
from deploy.ray_start import start_ray

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

Progress = Callable[[str], None]

APPLICATION = "baton"
_POLL_S = 0.25
_STOP_S = 20.0
_PATIENCE_S = 5.0
_LAST_LINES = 12
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Failed|Exception|Lost|Refused|Mismatch)\b.*: ")


class ServeCluster:
    """Start once, stop once; `stop` is safe at any moment after `__init__`."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._folder = own_folder()
        self._failed: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._gpus = 0.0

    @property
    def http_url(self) -> str:
        router = self._config.router
        return f"http://{host_port(reachable(router.http_host), router.http_port)}"

    @property
    def grpc_address(self) -> str:
        return host_port(reachable(self._config.router.grpc_host), self._config.router.grpc_port)

    @property
    def gpus(self) -> float:
        """That Ray found on this machine, once it has started."""
        return self._gpus

    def start(self, deadline_s: float) -> None:
        """Returns once a request would be served. Raises `StartFailed` with the failing part's own words."""
        deadline = time.monotonic() + deadline_s
        self._check_ports()
        adopt_orphans()
        os.environ.update(self._environment())
        self._progress("starting Ray")
        self._start_ray(deadline)
        self._progress("starting Ray Serve")
        self._in_thread(self._run_application, "serve-run")
        self._watch_boot(deadline)
        self._wait_until_serving(deadline)

    def stop(self) -> None:
        """Stops the application, Serve and Ray, then ends whatever is left of their processes."""
        # Where nobody has imported Ray yet there is none to stop, and the import takes seconds.
        orderly = self._stop_ray() if "ray" in sys.modules else True
        end_descendants(os.getpid(), _PATIENCE_S if orderly else 0.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop_ray(self) -> bool:
        """Whether it ended in order."""
        import ray
        from ray import serve

        if not ray.is_initialized():
            return True
        self._in_thread(serve.shutdown, "serve-shutdown")
        if not self._threads_end(_STOP_S):
            return False
        # Ray ends the whole process, before it has cleared up, when a thread uses it after its shutdown.
        ray.shutdown()
        return True

    def _in_thread(self, run: Callable[[], None], name: str) -> None:
        """What may take long or hang, so that this thread hears of interrupts and deadlines."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _threads_end(self, within_s: float) -> bool:
        give_up = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _environment(self) -> dict[str, str]:
        """What Ray must find in its environment before its first process starts; every cluster gets its own."""
        own = {
            **scratch_environment(self._folder),
            **proxy_environment(self._config.router),
            **own_proxy(self._folder, {self._config.router.http_port, self._config.router.grpc_port}),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray makes its loops for large clusters: at their defaults they burn a tenth of a core on an idle laptop.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
            "RAY_raylet_report_resources_period_milliseconds": "1000",
            "RAY_metrics_report_interval_ms": str(round(self._config.observability.metrics_period_s * 1000)),
            # Ray lets everything else on the machine go before its workers (15), who are what is waited for here.
            "RAY_worker_niceness": "0",
            # A Serve call that is still under way when Ray is shut down must not start a second Ray.
            "RAY_ENABLE_AUTO_CONNECT": "0",
        }
        variable = self._config.security.ticket_secret_env
        if not os.environ.get(variable):
            own[variable] = secrets.token_hex(32)
        return own

    def _start_ray(self, deadline: float) -> None:
        import ray

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        config = self._config
        init = partial(
            ray.init,
            address="local",
            num_cpus=max(1, round(most_cpus(config) + 0.5)),
            resources=most_resources(config) or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            namespace=f"baton-{config.name}",
        )
        try:
            start_ray(init, deadline, self._progress)
        except Exception as error:  # Ray raises nothing narrower when its processes take longer than it waits for them
            raise StartFailed(f"Ray did not start: {error} Is the machine busy? Try again when it is not") from error
        self._check_gpus(ray.cluster_resources())

    def _check_gpus(self, resources: Mapping[str, float]) -> None:
        """Raises `StartFailed` for too few or others: Serve would wait until the deadline, and not say why."""
        self._gpus = found = float(resources.get("GPU", 0.0))
        if (why := too_few_gpus(self._config, found) or absent_accelerator(self._config, resources)) is not None:
            raise StartFailed(why)
        if (most := most_gpus(self._config)) > found:
            self._progress(f"{found:g} GPUs: pools at their largest, surge included, would need {most}")

    def _run_application(self) -> None:
        from ray import serve

        from deploy.app import compose

        try:
            serve.start(http_options={"host": self._config.router.http_host, "port": self._config.router.http_port})
            target = serve.RunTarget(compose(self._config), name=APPLICATION, route_prefix="/")
            # How it comes up, `_watch_boot` sees.
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        except BaseException as error:  # reaches the user through _watch_boot
            self._failed.append(error)

    def _watch_boot(self, deadline: float) -> None:
        """Reports each change of the deployments until all run. Raises `StartFailed` on the first failure."""
        shown = ""
        while True:
            status = self._application_status()
            if status is not None:
                line = replicas_of(status)
                if line != shown:
                    self._progress(shown := line)
                raise_on_failure(status)
                if status.status == "RUNNING":
                    return
            if self._failed:
                raise StartFailed(_last_words(str(self._failed[0])))
            if time.monotonic() > deadline:
                raise StartFailed(f"not running within the deadline; last seen: {shown or 'nothing deployed'}")
            time.sleep(_POLL_S)

    def _application_status(self) -> ApplicationStatusOverview | None:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            return serve.status().applications.get(APPLICATION)
        except RayServeException:
            return None  # the controller is not up yet

    def _wait_until_serving(self, deadline: float) -> None:
        self._progress("waiting for the router to see its workers")
        reason, direct = "no answer yet", urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline:
            try:
                with direct.open(f"{self.http_url}/health", timeout=2):
                    return
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
            except OSError as error:
                reason = str(error)
            time.sleep(_POLL_S)
        raise StartFailed(f"{self.http_url}/health did not become ready within the deadline: {reason}")

    def _check_ports(self) -> None:
        router = self._config.router
        for key, host, port in (
            ("http", router.http_host, router.http_port),
            ("grpc", router.grpc_host, router.grpc_port),
        ):
            if (why := why_taken(host, port)) is not None:
                raise StartFailed(
                    f"router.{key}_port: cannot listen on {host_port(host, port)} ({why}); "
                    "stop what uses it or choose another port"
                )


def raise_on_failure(status: ApplicationStatusOverview) -> None:
    """Raises `StartFailed` with the failing part's own words."""
    for name, deployment in status.deployments.items():
        if "failed to start" in deployment.message or deployment.status in ("UNHEALTHY", "DEPLOY_FAILED"):
            raise StartFailed(f"{name}: {_last_words(deployment.message)}")
    if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        raise StartFailed(_last_words(status.message))


def replicas_of(status: ApplicationStatusOverview) -> str:
    """Each deployment with its replicas by state, in one line."""
    return ", ".join(f"{name} {_counts(each.replica_states)}" for name, each in sorted(status.deployments.items()))


def _counts(states: dict[str, int]) -> str:
    return " ".join(f"{count} {state.lower()}" for state, count in states.items() if count) or "pending"


def _last_words(message: str) -> str:
    """What the failing part said itself: the text of the last exception in a remote traceback, without its frames."""
    lines = [line for line in message.strip().splitlines() if line.strip()]
    raised = [at for at, line in enumerate(lines) if _RAISED.match(line)]
    return "\n".join(lines[raised[-1] :] if raised else lines[-_LAST_LINES:])
