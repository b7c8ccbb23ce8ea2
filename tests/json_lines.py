"""What a program of a test's own says: JSON objects, one a line, among other words."""

from __future__ import annotations

import asyncio
import json
from typing import Any


async def next_object(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Lines that are none are skipped: they are Ray's own words. AssertionError when the program has ended."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(b"{"):
            content: dict[str, Any] = json.loads(line)
            return content
    raise AssertionError(f"the program ended with {await process.wait()}")
