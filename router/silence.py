"""Which workers have said nothing for too long, though their connections stand. Pure: time that passed is an argument.

A process that is stopped, or a network that drops everything, closes no connection. What counts is the time in which
this router could have heard: a router that did not run itself blames nobody for that.
"""

from __future__ import annotations


class SilenceWatch:
    """`most_at_once_s`: of the time between two looks, no more counts."""

    def __init__(self, silent_after_s: float, most_at_once_s: float) -> None:
        self._silent_after_s = silent_after_s
        self._most_at_once_s = most_at_once_s
        self._silent_s: dict[str, float] = {}

    def heard(self, worker_id: str) -> None:
        """It spoke. From the first word on more are expected."""
        self._silent_s[worker_id] = 0.0

    def forget(self, worker_id: str) -> None:
        """Nothing is expected from it. Unknown ids are no error."""
        self._silent_s.pop(worker_id, None)

    def passed(self, seconds: float) -> list[str]:
        """Time passed since the last look; those that have been silent for too long now."""
        counted = min(seconds, self._most_at_once_s)
        for worker_id in self._silent_s:
            self._silent_s[worker_id] += counted
        return [worker_id for worker_id, silent_s in self._silent_s.items() if silent_s >= self._silent_after_s]
