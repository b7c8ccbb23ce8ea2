"""The decode pool under Ray Serve: ticket in, tokens out; also whole requests when disaggregation does not pay.

What is special to it: it pulls blocks and then holds them for long, so it is loaded by its sequences and their blocks.
"""

from __future__ import annotations

from ray import serve

from cluster.config import Config
from cluster.config_parts import version_of, worker_part
from cluster.engine import Role
from cluster.pool_options import serve_options
from cluster.serve_version import with_version
from kv_transfer.deployment import PoolReplica


class DecodeWorker(PoolReplica):
    role = Role.DECODE


def deployment(config: Config, scaling_policy: str) -> serve.Application:
    """`scaling_policy`: import path of the class that sizes the pool when it scales by itself."""
    options = serve_options(config, DecodeWorker.role, scaling_policy)
    part = worker_part(config, DecodeWorker.role)
    made = serve.deployment(DecodeWorker, name="decode", **options)
    return with_version(made, version_of(part)).bind(part)
