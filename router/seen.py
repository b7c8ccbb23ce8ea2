"""What a router writes down of its workers. Imports nothing heavy: the command line knows the words too."""

from __future__ import annotations

from enum import StrEnum


class Seen(StrEnum):
    """`STARTING` to `FAILED`: as the worker says of itself. `SILENT`: it said nothing for too long. `SLOW`, `FAILING`:
    left alone for a while. `RECOVERED`: a request had to leave it and went on elsewhere, or failed."""

    JOINED = "joined"
    LEFT = "left"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"
    FAILED = "failed"
    SILENT = "silent"
    DRAIN_ORDERED = "drain-ordered"
    DRAIN_UNDONE = "drain-undone"
    SLOW = "slow"
    FAILING = "failing"
    RECOVERED = "recovered"
    FLUSHED = "flushed"
    OTHER = "other"

    @classmethod
    def of(cls, state: str) -> Seen:
        """Of a worker's own state; `OTHER` for one of a newer version."""
        return next((seen for seen in cls if seen.value == state), cls.OTHER)
