"""Numbers as people read them in tables: ages, sizes, shares. Documents carry seconds and bytes instead."""

from __future__ import annotations

from datetime import UTC, datetime

NONE = "-"
_UNITS = ("B", "KB", "MB", "GB", "TB")
_STEPS = ((86_400, "d"), (3_600, "h"), (60, "m"))


def age(seconds: float | None) -> str:
    """Two figures at most: 250ms, 4.2s, 3m, 5h, 2d."""
    if seconds is None:
        return NONE
    for step, unit in _STEPS:
        if seconds >= 2 * step:
            return f"{seconds / step:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds >= 1 else f"{seconds * 1e3:.0f}ms"


def size(amount: float) -> str:
    for unit in _UNITS[:-1]:
        if amount < 1_000:
            return f"{amount:.3g} {unit}"
        amount /= 1_000
    return f"{amount:.3g} {_UNITS[-1]}"


def rate(amount: float, seconds: float) -> str:
    """Bytes a second."""
    return f"{size(amount / seconds)}/s" if seconds > 0 else NONE


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else NONE


def milliseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1e3:.3g}ms"


def moment(unix_s: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(unix_s: float) -> str:
    """Of a table's row: the local time of day."""
    return datetime.fromtimestamp(unix_s).strftime("%H:%M:%S")
