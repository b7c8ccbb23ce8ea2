"""Names that an operator gives, held against those that are there."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.cli.outcome import Exit, Stop


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raises `Stop`, not found, with the nearest of the names that are known."""
    from cluster.nearest import nearest_names

    there = list(known)
    if name not in there:
        raise Stop(nearest_names(kind, name, there), Exit.NOT_FOUND)
