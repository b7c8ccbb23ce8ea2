"""The choices of one request: which worker for which leg, and whether to keep prompt and output on one worker.

Bound to one request, for whose pipeline it answers `Choose` and `WholePays`; each choice is kept with its reasons
for the attempt that follows. It changes nothing elsewhere: what is taken is reserved by `placing`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np

from cluster.engine import Leg, Role
from router.decision import Decision, Why
from router.predicted_placement import Demand, Placement


class RequestChoices:
    """`describe` names the prompt's blocks, which takes a while for a long prompt: it is called once, when the first
    choice is to be made. `now` gives seconds of the clock that placement uses; `draw` breaks ties."""

    def __init__(
        self, placement: Placement, describe: Callable[[], Demand], now: Callable[[], float], draw: random.Random
    ) -> None:
        self._describe = describe
        self._placement = placement
        self._now = now
        self._draw = draw
        self._first: tuple[frozenset[str], Role, Decision] | None = None
        self._made: dict[tuple[Leg, str], Decision] = {}
        self._source = ""

    @cached_property
    def demand(self) -> Demand:
        return self._describe()

    @property
    def source(self) -> str:
        """The worker that was last chosen to compute the prompt; empty before."""
        return self._source

    def cached_tokens(self) -> int:
        """The most that any worker has of the prompt, as far as is known now."""
        return self._placement.cached_tokens(self.demand)

    def whole_pays(self, avoid: frozenset[str]) -> bool:
        decision = self._placement.first(self.demand, self._now(), self._draw, avoid)
        if decision is None:
            return False
        self._first = avoid, self._placement.loads.role(decision.chosen.worker_id), decision
        return decision.leg is Leg.WHOLE

    def choose(self, leg: Leg, role: Role, avoid: frozenset[str], prefer: str | None) -> str | None:
        decision = self._decide(leg, role, avoid)
        if decision is None:
            return None
        decision = _preferring(decision, prefer)
        worker_id = decision.chosen.worker_id
        self._made[leg, worker_id] = decision
        if leg is Leg.PREFILL:
            self._source = worker_id
        return worker_id

    def made(self, leg: Leg, worker_id: str) -> Decision:
        """The newest choice of this worker for this leg. KeyError: there was none."""
        return self._made[leg, worker_id]

    def _decide(self, leg: Leg, role: Role, avoid: frozenset[str]) -> Decision | None:
        first, self._first = self._first, None
        if first is not None and first[:2] == (avoid, role) and first[2].leg is leg:
            return first[2]
        return self._placement.one(leg, role, self.demand, self._source, self._now(), self._draw, avoid)


def _preferring(decision: Decision, worker_id: str | None) -> Decision:
    table = decision.table
    if worker_id not in table.names or decision.chosen.worker_id == worker_id:
        return decision
    found: list[int] = np.flatnonzero(table.rows == table.names.index(worker_id)).tolist()
    if not found:
        return decision
    return replace(decision, why=Why.PREFETCHED, chosen=table.candidate(found[0]), at=found[0])
