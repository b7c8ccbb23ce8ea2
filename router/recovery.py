"""What one request has been through, and whether it may be tried once more. Pure.

Tells apart what a worker answered with an error, which may be the request's own fault; workers that were lost under it,
whose fault it may be when it goes on; and workers that would not have it, which says nothing. It must not know legs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import RouterConfig
from cluster.errors import BatonError, WorkersLost
from router.actions import Ending

_TAKES_THE_WORKER = (Ending.LOST, Ending.STALLED)
_TAKES_TIME = (Ending.FAILED, Ending.LATE)


@dataclass(frozen=True, slots=True)
class RecoveryRules:
    """`attempts_most`: that may fail, be late or be lost. `lost_workers_most`: lost in a row, without a token of output
    in between. `prefill_may_decode`: whether a prefill worker goes on where no decode worker is left."""

    attempts_most: int = 6
    lost_workers_most: int = 3
    prefill_may_decode: bool = True

    @classmethod
    def of(cls, config: RouterConfig) -> RecoveryRules:
        return cls(config.attempts_most, config.lost_workers_most, config.prefill_may_decode)


class Recovery:
    """Of one request."""

    def __init__(self, rules: RecoveryRules) -> None:
        self._rules = rules
        self._failed = 0
        self._lost = 0
        self._lost_in_a_row = 0
        self._first: BatonError | None = None
        self._refused: frozenset[str] = frozenset()
        self._left: frozenset[str] = frozenset()

    @property
    def failed(self) -> int:
        """Attempts that failed or were late."""
        return self._failed

    def first_cause(self, otherwise: BatonError) -> BatonError:
        return self._first or otherwise

    @property
    def avoid(self) -> tuple[frozenset[str], ...]:
        """Workers not to be chosen; where that leaves none, those that were lost and have come back will do."""
        every = self._refused | self._left
        return (every,) if every == self._refused else (every, self._refused)

    def ended(self, ending: Ending, worker_id: str, cause: BatonError, *, progressed: bool, blamed: bool) -> None:
        """An attempt had to be left. `progressed`: it gave tokens to the client. `blamed`: as far as is known it was
        the worker's fault, or it is the worker that does not want the request."""
        self._first = self._first or cause
        if ending in _TAKES_THE_WORKER:
            self._lost += 1
            self._lost_in_a_row = 1 if progressed else self._lost_in_a_row + 1
            self._left |= {worker_id}
            return
        self._failed += ending in _TAKES_TIME
        if blamed or ending is Ending.MOVED:
            self._refused |= {worker_id}

    def enough(self, cause: BatonError) -> BatonError | None:
        """What the client hears, where the request is not to be tried again."""
        if self._lost_in_a_row >= self._rules.lost_workers_most:
            return WorkersLost(
                f"{self._lost_in_a_row} workers in a row were lost while they had this request, the last: {cause}. "
                "It is not tried again, for it may be what ends them: see the workers' logs"
            )
        return cause if self._failed + self._lost >= self._rules.attempts_most else None
