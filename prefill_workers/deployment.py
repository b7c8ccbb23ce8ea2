"""The prefill pool under Ray Serve: prompt in, first token and ticket out.

What is special to it: it runs the prefill leg, pins what it hands over, and is loaded by the prompt tokens that wait.
"""

from __future__ import annotations

from ray import serve

from cluster.config import Config
from cluster.config_parts import version_of, worker_part
from cluster.engine import Role
from cluster.pool_options import serve_options
from cluster.serve_version import with_version
from kv_transfer.deployment import PoolReplica


class PrefillWorker(PoolReplica):
    role = Role.PREFILL


def deployment(config: Config, scaling_policy: str) -> serve.Application:
    """`scaling_policy`: import path of the class that sizes the pool when it scales by itself."""
    options = serve_options(config, PrefillWorker.role, scaling_policy)
    part = worker_part(config, PrefillWorker.role)
    made = serve.deployment(PrefillWorker, name="prefill", **options)
    return with_version(made, version_of(part)).bind(part)
