"""Files that are there and cannot be read, for tests that run as root too, whom no permission stops."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch


@contextmanager
def unreadable_files() -> Iterator[None]:
    """Meanwhile whoever opens a `Path` is told that it may not."""
    with patch.object(Path, "open", side_effect=PermissionError(errno.EACCES, os.strerror(errno.EACCES))):
        yield
