"""Why a worker was chosen: every candidate's predicted costs, in seconds, as they were at the moment of the decision.

Records only; a journal keeps them, `predicted_placement` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from cluster.engine import Leg

Column = npt.NDArray[np.float64]


class Why(StrEnum):
    """`BEST`: less predicted time than any other; `TIE`: drawn among equals; `SESSION`: its session was here before and
    it costs little more; `ONLY`: there was no other."""

    BEST = "best"
    TIE = "tie"
    SESSION = "session"
    ONLY = "only"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What choosing this worker was predicted to cost, in seconds.

    queue: prompts of others first. prefill: what of the prompt is not cached. transfer: blocks that decode lacks.
    decode: tokens of output (for a first leg: more than on the best decode worker). room: waiting for KV blocks.
    harm: stalls of streams running there. total: their sum.
    """

    worker_id: str
    cached_tokens: int
    queue_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float
    room_s: float
    harm_s: float

    @property
    def total_s(self) -> float:
        return self.queue_s + self.prefill_s + self.transfer_s + self.decode_s + self.room_s + self.harm_s


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """The costs of all candidates for one leg, by column; what does not apply is 0. `total` is the sum."""

    leg: Leg
    rows: npt.NDArray[np.intp]
    cached_tokens: Column
    queue_s: Column | float = 0.0
    prefill_s: Column | float = 0.0
    transfer_s: Column | float = 0.0
    decode_s: Column | float = 0.0
    room_s: Column | float = 0.0
    harm_s: Column | float = 0.0

    @property
    def total(self) -> Column:
        parts = (self.queue_s, self.prefill_s, self.transfer_s, self.decode_s, self.room_s, self.harm_s)
        total = np.zeros(len(self.rows))
        for part in parts:
            total += part
        return total

    def candidate(self, at: int, names: Sequence[str]) -> Candidate:
        """The record of one candidate; `names` are the workers' ids by row."""

        def of(column: Column | float) -> float:
            return column if isinstance(column, float) else float(column[at])

        return Candidate(
            worker_id=names[self.rows[at]],
            cached_tokens=int(self.cached_tokens[at]),
            queue_s=of(self.queue_s),
            prefill_s=of(self.prefill_s),
            transfer_s=of(self.transfer_s),
            decode_s=of(self.decode_s),
            room_s=of(self.room_s),
            harm_s=of(self.harm_s),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """`leg` is what the chosen worker is to do. `candidates`: the best of those for the same leg, the chosen one among
    them, best first; `considered`: how many there were. `instead`: the best candidate for the leg that was not taken,
    where whether to disaggregate was a choice."""

    leg: Leg
    why: Why
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    considered: int
    instead: Candidate | None = None

    @property
    def runner_up(self) -> Candidate | None:
        """The best of those for the same leg that were not chosen."""
        return next((candidate for candidate in self.candidates if candidate is not self.chosen), None)
