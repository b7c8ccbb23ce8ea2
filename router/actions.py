"""What the pipeline of one request wants done; `dispatch` does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cluster.engine import EngineRequest, Leg
from router.generation import Emission, Outcome


class Ending(StrEnum):
    """How an attempt ended. `FAILED`: its worker answered with an error. `CANCELLED`: nobody needs its answer any more.
    `LATE`: its time was over. `LOST`: with its worker. `STALLED`: its worker no longer moved, or said nothing. `MOVED`:
    its worker was not ready to take it, or is leaving."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LATE = "late"
    LOST = "lost"
    STALLED = "stalled"
    MOVED = "moved"


AS_WANTED = frozenset({Ending.COMPLETED, Ending.CANCELLED})
"""Requests had to leave attempts that ended in another way."""


@dataclass(frozen=True, slots=True)
class Submit:
    worker_id: str
    request: EngineRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the attempt at its worker. `Settle` for it comes right before."""

    worker_id: str
    attempt_id: str


@dataclass(frozen=True, slots=True)
class Settle:
    """The attempt counts no longer; comes once for every `Submit`. `blamed`: it failed by its worker's fault, as far as
    is known. `leg`, `ending` and `reason` are for the record: two that differ in them ask for the same."""

    worker_id: str
    attempt_id: str
    leg: Leg = field(default=Leg.WHOLE, compare=False)
    ending: Ending = field(default=Ending.COMPLETED, compare=False)
    reason: str = field(default="", compare=False)
    blamed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing runs for the request now: it is to be tried again after so many seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody will read this lease."""

    worker_id: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class Emit:
    emission: Emission


@dataclass(frozen=True, slots=True)
class End:
    """The last action of every request, once."""

    outcome: Outcome


Action = Submit | Cancel | Settle | Later | Release | Emit | End
