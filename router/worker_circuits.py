"""Which workers answer with errors, one request after the other, and for how long each gets nothing new. Pure: time is
an argument.

A worker that fails everything at once looks idle, and would be given ever more. After so many failures in a row, of
different requests, it is left alone; each failure after that time doubles it; one success ends it. What a request does
to every worker that it comes to counts once for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CircuitRules:
    """`after` failures in a row a worker is left alone for `open_s` seconds, at most `most_s` when it goes on."""

    after: int
    open_s: float
    most_s: float


@dataclass(slots=True)
class _Streak:
    """`requests`: whose attempts failed, until there are enough of them."""

    open_s: float
    requests: set[str] = field(default_factory=set)
    until: float = float("-inf")


class WorkerCircuits:
    def __init__(self, rules: CircuitRules) -> None:
        self._rules = rules
        self._streaks: dict[str, _Streak] = {}

    def __len__(self) -> int:
        return len(self._streaks)

    def failed(self, worker_id: str, request_id: str, now: float) -> float | None:
        """An attempt failed there, by the worker's fault as far as is known. Until when the worker is to be left alone,
        where this failure decides it."""
        streak = self._streaks.setdefault(worker_id, _Streak(self._rules.open_s))
        if now < streak.until:
            return None  # begun before it was left alone
        enough = len(streak.requests) >= self._rules.after
        if not enough:
            streak.requests.add(request_id)
            if len(streak.requests) < self._rules.after:
                return None
        streak.until = now + streak.open_s
        streak.open_s = min(2 * streak.open_s, self._rules.most_s)
        return streak.until

    def worked(self, worker_id: str) -> None:
        """Also when it is gone. Unknown ids are no error."""
        self._streaks.pop(worker_id, None)
