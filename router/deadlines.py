"""Which of many deadlines have passed."""

from __future__ import annotations


def due(deadlines: dict[str, float], now: float) -> list[str]:
    """Ids whose time has come; `deadlines` are in their own order, so this reads no further than it must."""
    passed = []
    for key, deadline in deadlines.items():
        if deadline > now:
            break
        passed.append(key)
    return passed
