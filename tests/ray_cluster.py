"""A small Ray cluster of the test's own, on this machine, for as long as the block lasts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from deploy.ray_start import start_ray

# Ray's own wait for its node twice, with the processes that it starts before.
START_S = 120.0


def start_small_ray(namespace: str, cpus: int) -> None:
    """Of this process, until `ray.shutdown`."""
    import ray

    init = partial(
        ray.init,
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        namespace=f"baton-{namespace}",
    )
    start_ray(init, time.monotonic() + START_S, logging.getLogger(__name__).warning)


@contextmanager
def ray_cluster(name: str, **environment: str) -> Iterator[None]:
    """`environment` is inherited by every process of the cluster."""
    import ray
    from ray import serve

    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment, RAY_USAGE_STATS_ENABLED="0")
    start_small_ray(name, cpus=8)
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
