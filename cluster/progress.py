"""Whether an engine moves while it has work: a pure rule. Idle engines never stall."""

from __future__ import annotations


class ProgressWatch:
    """Times are seconds of one clock. The engine counts as stalled once it had work, and no step, for
    `stall_after_s`."""

    def __init__(self, stall_after_s: float) -> None:
        self._stall_after_s = stall_after_s
        self._since: float | None = None  # since when it owes a step

    def work_came(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def moved(self, now: float, work_left: bool) -> None:
        self._since = now if work_left else None

    def work_gone(self) -> None:
        self._since = None

    def excuse(self, seconds: float, now: float) -> None:
        """For so long until now nobody could have seen a step: whoever watches did not run either."""
        if self._since is not None:
            self._since = min(self._since + max(seconds, 0.0), now)

    def stalled_for(self, now: float) -> float | None:
        """Seconds without a step, once they are too many."""
        if self._since is None or now - self._since < self._stall_after_s:
            return None
        return now - self._since

    def next_look_s(self, now: float) -> float:
        """Seconds until it may have stalled, at the earliest."""
        since = now if self._since is None else self._since
        return max(since + self._stall_after_s - now, 0.0)
