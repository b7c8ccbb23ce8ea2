"""The composition root: one Ray Serve application out of one configuration.

`build` is the `import_path` of every way to deploy: `baton up`, a Serve config file, a RayService manifest.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from ray import serve

import decode_workers.deployment
import prefill_workers.deployment
import router.deployment
from cluster.config import Config, parse_config

POOL_SIZE_POLICY = "deploy.scaling_policy:PoolSizePolicy"


class AppArgs(BaseModel):
    """`config` is the configuration file's mapping, unchanged."""

    config: dict[str, Any]


def build(args: AppArgs) -> serve.Application:
    """The application for `args.config`. Raises `ConfigError`."""
    return compose(parse_config(args.config))


def compose(config: Config) -> serve.Application:
    """Router on top, the two pools below it; Serve starts, checks, scales and drains the three of them."""
    prefill = prefill_workers.deployment.deployment(config, POOL_SIZE_POLICY)
    decode = decode_workers.deployment.deployment(config, POOL_SIZE_POLICY)
    return router.deployment.deployment(config, prefill, decode)
