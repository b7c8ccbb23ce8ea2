"""Files that count while a process runs: read again once they have changed, or once they can be read again.

What was read last stands until then. It must not know what is in the files, nor when somebody looks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from cluster.errors import ConfigError

logger = logging.getLogger(__name__)

_Content = TypeVar("_Content")
_Stamp = tuple[int, int, int, int]


class Unreadable(ConfigError):
    """The file cannot be read; nothing is said of what is in it."""


def read_file(path: str, key: str) -> bytes:
    """`key`: of the configuration, which names the file. Raises `Unreadable`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(f"{key}: {path}: cannot be read: {error.strerror}") from error


class WatchedFiles(Generic[_Content]):
    """`content` is what `read` made of the files last; it gets them by `read_file`. `what`: they, in a sentence. Raises
    what `read` raises, a `ConfigError`."""

    def __init__(self, paths: Sequence[str], read: Callable[[], _Content], what: str) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._what = what
        self._stamps: list[_Stamp | None] | None = self._look()  # None: not known
        self._told = ""
        self.content = read()

    def renew(self) -> bool:
        """Whether `content` is new since the last time. What cannot be read, or is no good, is logged and leaves it as
        it was."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self.content = self._read()
        except Unreadable as error:
            # What kept it from being read may go away and leave no trace at the file: so the next look tries again.
            self._stamps = None
            if str(error) != self._told:
                self._told = str(error)
                self._complain(error)
            return False
        except ConfigError as error:
            self._told = ""
            self._complain(error)
            return False
        self._told = ""
        return True

    def _complain(self, error: ConfigError) -> None:
        logger.error("%s stay as they were: %s", self._what, error)

    def _look(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> _Stamp | None:
    """Differs once the file, its owner or its permissions have changed; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
