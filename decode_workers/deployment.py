"""The decode pool under Ray Serve: ticket in, tokens out; also whole requests when disaggregation does not pay.

What is special to it: it pulls blocks and then holds them for long, so it is loaded by its sequences and their blocks.
"""

from __future__ import annotations

from ray import serve

from cluster.config import Config
from cluster.engine import Role
from cluster.pool_options import serve_options
from kv_transfer.deployment import PoolReplica


class DecodeWorker(PoolReplica):
    role = Role.DECODE


def deployment(config: Config, scaling_policy: str) -> serve.Application:
    """`scaling_policy`: import path of the class that sizes the pool when it scales by itself."""
    options = serve_options(config, DecodeWorker.role, scaling_policy)
    return serve.deployment(DecodeWorker, name="decode", **options).bind(config)
