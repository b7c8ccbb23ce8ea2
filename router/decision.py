"""Why a worker was chosen: every candidate's predicted costs, in seconds, as they were at the moment of the decision.

Records only; a journal keeps them, `predicted_placement` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from cluster.engine import Leg

Column = npt.NDArray[np.float64]


class Why(StrEnum):
    """`BEST`: less predicted time than any other; `TIE`: drawn among equals; `SESSION`: its session was here before and
    it costs little more; `PREFETCHED`: the prompt's blocks are on their way there; `ONLY`: there was no other;
    `TURN`, `CHANCE`: costs were not asked, it was next or it was drawn."""

    BEST = "best"
    TIE = "tie"
    SESSION = "session"
    PREFETCHED = "prefetched"
    ONLY = "only"
    TURN = "turn"
    CHANCE = "chance"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What choosing this worker was predicted to cost, in seconds.

    queue: prompts of others first. prefill: what of the prompt is not cached. transfer: blocks that decode lacks.
    decode: tokens of output (for a first leg: more than on the best decode worker). room: waiting for KV blocks.
    harm: stalls of streams running there. evict: what others lose of their cache. total: their sum.
    """

    worker_id: str
    cached_tokens: int
    queue_s: float = 0.0
    prefill_s: float = 0.0
    transfer_s: float = 0.0
    decode_s: float = 0.0
    room_s: float = 0.0
    harm_s: float = 0.0
    evict_s: float = 0.0

    @property
    def total_s(self) -> float:
        latency_s = self.queue_s + self.prefill_s + self.transfer_s + self.decode_s + self.room_s
        return latency_s + self.harm_s + self.evict_s


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """The costs of all candidates for one leg, by column; a cost that does not apply has none. Made once by `of` and
    left alone from then on. `names` are the workers' ids by row, as they were."""

    leg: Leg
    names: tuple[str, ...]
    rows: npt.NDArray[np.intp]
    cached_tokens: Column
    costs: dict[str, Column]
    total: Column

    @classmethod
    def of(
        cls,
        leg: Leg,
        names: tuple[str, ...],
        rows: npt.NDArray[np.intp],
        cached_tokens: Column,
        **costs: Column,
    ) -> CostTable:
        """`costs` are named as in `Candidate`, at least one."""
        first, *others = costs.values()
        total = first
        for cost in others:
            total = total + cost
        return cls(leg, names, rows, cached_tokens, costs, total)

    def __len__(self) -> int:
        return len(self.rows)

    def candidate(self, at: int) -> Candidate:
        """The record of the candidate at this place of the columns."""
        costs = {name: float(column[at]) for name, column in self.costs.items()}
        return Candidate(self.names[self.rows[at]], int(self.cached_tokens[at]), **costs)

    def best(self, count: int) -> list[int]:
        """The places of the candidates with the smallest totals, smallest first."""
        near = np.arange(len(self)) if len(self) <= count else np.argpartition(self.total, count)[:count]
        order: list[int] = near[np.argsort(self.total[near], kind="stable")].tolist()
        return order


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """`table`: the candidates for the leg that the chosen one is to do; `instead`: those for the leg that was not
    taken, where whether to disaggregate was a choice. Cheap to make; a record of it is made when somebody asks."""

    why: Why
    chosen: Candidate
    table: CostTable
    at: int
    instead: CostTable | None = None

    @property
    def leg(self) -> Leg:
        """What the chosen worker is to do."""
        return self.table.leg

    @property
    def considered(self) -> int:
        """How many workers could have been chosen for this leg."""
        return len(self.table)

    def candidates(self, count: int) -> list[Candidate]:
        """The chosen one, then the best of the others; at most `count`."""
        others = [at for at in self.table.best(count) if at != self.at]
        return [self.chosen, *map(self.table.candidate, others[: count - 1])]

    @property
    def runner_up(self) -> Candidate | None:
        """The best of those for the same leg that were not chosen."""
        return next(iter(self.candidates(2)[1:]), None)

    @property
    def best_instead(self) -> Candidate | None:
        """The best candidate for the leg that was not taken."""
        return None if self.instead is None else self.instead.candidate(int(self.instead.total.argmin()))
