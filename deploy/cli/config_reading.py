"""A configuration from where an operator names it: a file, or a router that runs with it."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.config import Config, load_config, parse_config
from deploy.cli.endpoint import ask_admin
from deploy.local_model import with_local_model
from protos.baton.v1 import admin_pb2


def live_config(endpoint: str, timeout_s: float) -> Config:
    """As the router runs with it; what its file named is set, the rest are defaults. Raises `Stop`, and `ConfigError`
    for one of another version."""
    asked = admin_pb2.ShowConfigRequest()
    answer = ask_admin(endpoint, timeout_s, lambda admin: admin.ShowConfig(asked, timeout=timeout_s))
    return parse_config(json.loads(answer.given_json), origin=f"configuration of {answer.router_id}")


def file_config(path: Path) -> Config:
    """With the model's path as a cluster of this machine would have it. Raises `ConfigError`."""
    return with_local_model(load_config(path), must_exist=False)
