"""The folder that a local cluster keeps its sockets and temporary files in: one a process that owns a cluster.

It bears its owner's process id, so that whoever outlives the owner can remove it.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tempfile
from pathlib import Path

_PARENT = Path("/tmp")
"""Sockets lie in it, and the path of a Unix socket is short: not wherever TMPDIR may point."""


def own_folder() -> Path:
    """A new one of this process, empty. Raises `OSError`."""
    return Path(tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=_PARENT))


def scratch_environment(folder: Path) -> dict[str, str]:
    """Makes all processes that get it put their temporary files below `folder`: engines that are killed leave theirs.
    Not Ray's logs, which stay where people look for them, nor what torch has compiled, which the next cluster needs."""
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{re.sub(r'[^A-Za-z0-9_.-]', '_', getpass.getuser())}"
    return {
        "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", tempfile.gettempdir()),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled)),
        "TMPDIR": str(scratch),
    }


def remove_folders_of(owner: int) -> None:
    """Of a process that has ended; what cannot be removed stays."""
    for folder in _PARENT.glob(f"{_prefix(owner)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(owner: int) -> str:
    return f"baton-{owner}-"
