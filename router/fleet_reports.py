"""What each worker said of itself, asked now or remembered: an operator is answered at once, a silent worker or not.

It must not know links or requests; how a worker is asked is its caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.errors import WorkerLost
from cluster.membership import WorkerRecord
from protos.baton.v1 import worker_pb2 as pb

Ask = Callable[[], Awaitable[pb.WorkerDescription]]
"""Raises `WorkerLost` when no answer comes in time."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says of itself; or, with the reason why it does not answer, what it said last, None if it never
    did. Seconds: `age_s` of the description; `heard_s` since it said anything over its session or its watch, None
    without one; `clock_ahead_s` of its wall clock before ours, at least. `linked`: a session with it stands."""

    record: WorkerRecord
    description: pb.WorkerDescription | None
    unreachable: str = ""
    age_s: float = 0.0
    heard_s: float | None = None
    clock_ahead_s: float | None = None
    linked: bool = False

    @property
    def ready(self) -> bool:
        """As far as is known: one that is only slow to describe itself still works."""
        if self.description is None or (self.unreachable and not self.linked):
            return False
        return self.description.state == pb.WORKER_STATE_READY


@dataclass(slots=True)
class _Known:
    description: pb.WorkerDescription
    told_at: float
    heard_at: float


class FleetReports:
    """`now`: monotonic seconds; `wall`: seconds since 1970. Unknown workers are no error."""

    def __init__(self, now: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._now = now
        self._wall = wall
        self._known: dict[str, _Known] = {}

    def joined(self, description: pb.WorkerDescription) -> None:
        """The worker's first word over a new session."""
        now = self._now()
        self._known[description.worker_id] = _Known(description, now, now)

    def last(self, worker_id: str) -> pb.WorkerDescription | None:
        """As it stands now, with what the worker told of its load and state since."""
        known = self._known.get(worker_id)
        return None if known is None else known.description

    def heard(self, worker_id: str) -> None:
        """It said something. Called for every step of every worker."""
        if known := self._known.get(worker_id):
            known.heard_at = self._now()

    def load_changed(self, worker_id: str, load: pb.Load) -> None:
        if known := self._known.get(worker_id):
            known.description.load.CopyFrom(load)

    def state_changed(self, worker_id: str, state: pb.WorkerState.ValueType, reason: str) -> bool:
        """Whether that is news."""
        known = self._known.get(worker_id)
        if known is None:
            return True
        description = known.description
        news = description.state != state
        description.state, description.reason = state, reason
        return news

    def forget(self, worker_id: str) -> None:
        self._known.pop(worker_id, None)

    async def ask(self, record: WorkerRecord, ask: Ask, linked: bool) -> WorkerReport:
        began = self._wall()
        try:
            description = await ask()
        except WorkerLost as error:
            return self._remembered(record, str(error), linked)
        ended = self._wall()
        ahead = _outside(description.clock_unix_s, began, ended) if description.clock_unix_s else None
        heard_s: float | None = None
        if known := self._known.get(record.worker_id):
            known.description, known.told_at = description, self._now()
            heard_s = known.told_at - known.heard_at
        return WorkerReport(record, description, heard_s=heard_s, clock_ahead_s=ahead, linked=linked)

    def _remembered(self, record: WorkerRecord, why: str, linked: bool) -> WorkerReport:
        known, now = self._known.get(record.worker_id), self._now()
        if known is None or known.description.epoch != record.epoch:
            return WorkerReport(record, None, why, linked=linked)
        return WorkerReport(record, known.description, why, now - known.told_at, now - known.heard_at, linked=linked)


def _outside(told: float, began: float, ended: float) -> float:
    """How far a clock is off for sure that was read between two moments: a call that took long proves little."""
    return max(0.0, told - ended) + min(0.0, told - began)
