"""A small Ray cluster of the test's own, on this machine, for as long as the block lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_cluster(name: str, **environment: str) -> Iterator[None]:
    """`environment` is inherited by every process of the cluster."""
    import ray
    from ray import serve

    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment, RAY_USAGE_STATS_ENABLED="0")
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, namespace=f"baton-{name}")
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
