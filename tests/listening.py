"""Which process listens on a port. Linux only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from deploy.processes import descendants


def listener(port: int, below: int) -> int:
    """The process below that one that listens on the port. Raises `LookupError`."""
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    sockets = {f"socket:[{line[9]}]" for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}
    for pid in descendants(below):
        with contextlib.suppress(OSError):
            for number in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(number) in sockets:
                        return pid
    raise LookupError(f"nobody listens on port {port}")
