"""The keys of a configuration as they are now: those in it, and those in its keys file, which may change meanwhile.

The file is looked at when somebody asks, at most once a second. What cannot be read leaves the keys as they were.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from cluster.config_security import KeyEntry, SecurityConfig
from cluster.errors import ConfigError
from cluster.key_ring import KeyRing

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_ENTRIES = TypeAdapter(list[KeyEntry])

_Stamp = tuple[int, int, int]


class CurrentKeys:
    """`now`: a clock, seconds. Raises `ConfigError` when the file cannot be read or is not a list of keys."""

    def __init__(self, config: SecurityConfig, now: Callable[[], float]) -> None:
        self._fixed = tuple(config.keys)
        self._path = None if config.keys_file is None else Path(config.keys_file)
        self._now = now
        self._looked = now()
        self._stamp = None if self._path is None else _stamp(self._path)
        self._ring = KeyRing([*self._fixed, *([] if self._path is None else read_keys(self._path))])

    def ring(self) -> KeyRing:
        """As of a second ago at most."""
        if self._path is not None and self._now() - self._looked >= LOOK_EVERY_S:
            self._looked = self._now()
            self._look(self._path)
        return self._ring

    def _look(self, path: Path) -> None:
        stamp = _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._ring = KeyRing([*self._fixed, *read_keys(path)])
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%s: %d keys from now on", path, len(self._ring))


def read_keys(path: Path) -> list[KeyEntry]:
    """Raises `ConfigError`: no such file, an empty one, not YAML, or not a list of keys. What stands there is not
    repeated."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if raw is None:  # so is, for a moment, a file that is written in place: that must lock nobody out
            raise ConfigError(f"security.keys_file: {path}: is empty; write [] where nobody shall have a key")
        return _ENTRIES.validate_python(raw)
    except OSError as error:
        raise ConfigError(f"security.keys_file: {path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ConfigError(f"security.keys_file: {path}: not YAML") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"security.keys_file: {path}: expected what `baton key new` prints: {said}") from None


def _stamp(path: Path) -> _Stamp | None:
    """Differs once the file has changed; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
