"""The keys of a configuration as they are now: those in it, and those in its keys file, which may change meanwhile.

The file is looked at when somebody asks, at most once a second. What cannot be read leaves the keys as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import yaml
from pydantic import TypeAdapter, ValidationError

from cluster.config_security import KeyEntry, SecurityConfig
from cluster.errors import ConfigError
from cluster.key_ring import KeyRing
from cluster.watched_files import WatchedFiles, read_file

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_ENTRIES = TypeAdapter(list[KeyEntry])


class CurrentKeys:
    """`now`: a clock, seconds. Raises `ConfigError` when the file cannot be read or is not a list of keys."""

    def __init__(self, config: SecurityConfig, now: Callable[[], float]) -> None:
        self._fixed, self._path = tuple(config.keys), config.keys_file
        self._now = now
        self._looked = now()
        self._rings = WatchedFiles([] if self._path is None else [self._path], self._read, "the keys")

    def ring(self) -> KeyRing:
        """As of a second ago at most."""
        if self._path is not None and self._now() - self._looked >= LOOK_EVERY_S:
            self._looked = self._now()
            if self._rings.renew():
                logger.info("%s: %d keys from now on", self._path, len(self._rings.content))
        return self._rings.content

    def _read(self) -> KeyRing:
        return KeyRing([*self._fixed, *([] if self._path is None else read_keys(self._path))])


def read_keys(path: str) -> list[KeyEntry]:
    """Raises `ConfigError`: no such file, an empty one, not YAML, or not a list of keys. What stands there is not
    repeated."""
    content = read_file(path, "security.keys_file")
    try:
        raw = yaml.safe_load(content.decode("utf-8"))
        if raw is None:  # so is, for a moment, a file that is written in place: that must lock nobody out
            raise ConfigError(f"security.keys_file: {path}: is empty; write [] where nobody shall have a key")
        return _ENTRIES.validate_python(raw)
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ConfigError(f"security.keys_file: {path}: not YAML") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"security.keys_file: {path}: expected what `baton key new` prints: {said}") from None
