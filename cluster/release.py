"""Which release of Baton this process runs: parts of one cluster must not differ in it."""

from __future__ import annotations

import importlib.metadata
from functools import cache

_DISTRIBUTION = "baton-serve"


@cache
def release() -> str:
    """As the installed package says; "unknown" for code that runs without having been installed."""
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
