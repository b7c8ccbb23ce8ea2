"""A model's path as a cluster of this machine has it: its workers run in other folders than whoever wrote the path."""

from __future__ import annotations

from pathlib import Path

from cluster.config import Config
from cluster.errors import ConfigError

_PLACES = (".", "/", "~")
"""With what a path begins that is no name of a model on a hub."""


def with_local_model(config: Config, must_exist: bool) -> Config:
    """A relative path that exists here is meant from here. Raises `ConfigError` where this user cannot look, and with
    `must_exist` for a path to nothing that an engine would read."""
    path = Path(config.model.path)
    try:
        found = str(path.resolve()) if path.exists() else None
    except OSError as error:
        raise ConfigError(
            f"model.path: {config.model.path}: {error.strerror}; name a directory that this user may enter"
        ) from error
    if found is not None:
        return config.model_copy(update={"model": config.model.model_copy(update={"path": found})})
    if must_exist and config.engine.kind == "vllm" and config.model.path.startswith(_PLACES):
        raise ConfigError(f"model.path: {config.model.path} does not exist; `baton model demo DIR` writes a demo model")
    return config
