"""What one router has counted of its requests, for the operator. Who ends what is `dispatch`'s business."""

from __future__ import annotations

from collections import Counter

from cluster.engine import Leg
from cluster.errors import (
    BatonError,
    DeadlineExceeded,
    DeadlineUnreachable,
    NoWorker,
    Overloaded,
    RetriesSpent,
    StoreUnavailable,
    TenantLimited,
)
from router.actions import AS_WANTED, Ending, Settle
from router.generation import Outcome

_REFUSALS: tuple[tuple[type[BatonError], str], ...] = (
    (TenantLimited, "tenant_limit"),
    (DeadlineUnreachable, "deadline"),
    (DeadlineExceeded, "deadline"),
    (RetriesSpent, "retries_spent"),
    (Overloaded, "queue_full"),
    (NoWorker, "no_worker"),
    (StoreUnavailable, "store"),
)
"""The first that fits."""


class RequestCounts:
    """`recoveries`: attempts that had to be left, by why. A prefetch is none: its failure changes nothing. `refusals`:
    of the refused, why."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.recoveries: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.disaggregated = 0
        self.whole = 0

    def settled(self, settle: Settle) -> None:
        if settle.ending not in AS_WANTED and settle.leg is not Leg.PREFETCH:
            self.recoveries["error" if settle.ending is Ending.FAILED else settle.ending.value] += 1

    def refused(self, error: BatonError) -> None:
        self.outcomes[Outcome.REFUSED.value] += 1
        self.refusals[_reason(error)] += 1

    def ended(self, outcome: Outcome, handed_over: bool) -> None:
        self.outcomes[outcome.value] += 1
        if handed_over:
            self.disaggregated += 1
        elif outcome is Outcome.COMPLETED:
            self.whole += 1


def _reason(error: BatonError) -> str:
    return next((reason for kind, reason in _REFUSALS if isinstance(error, kind)), "not_allowed")
