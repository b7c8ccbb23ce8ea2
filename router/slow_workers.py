"""Which workers are much slower than the rest of their pool, and for how long each is left alone. Pure: the time is an
argument.

Every measurement is taken against what the pool usually takes for the same work, so that long prompts and full batches
are not mistaken for slow workers; then workers are compared by their medians, so that a few bad moments are not either.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from cluster.config_placement import SlowWorkersConfig

RECENT_S = 60.0
"""Older measurements say nothing about now."""
LOOK_EVERY_S = 1.0
_MEMORY = 64  # measurements of each kind that are kept of a worker
_LEAST_S = 1e-4  # against which to measure what usually takes next to nothing


class Work(Enum):
    PREFILL = "a prefill"
    TOKEN = "a token"


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Gets nothing before `until`."""

    worker_id: str
    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Took:
    at: float
    seconds: float
    usual_s: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.usual_s


def _memory() -> dict[Work, deque[_Took]]:
    return {work: deque(maxlen=_MEMORY) for work in Work}


@dataclass(slots=True)
class _Worker:
    """`next_s`: for how long it will be left alone if it is slow. `ratios`: the medians of what it took lately."""

    pool: str
    next_s: float
    ready: bool = True
    until: float = -math.inf
    took: dict[Work, deque[_Took]] = field(default_factory=_memory)
    ratios: dict[Work, float] = field(default_factory=dict)


class SlowWorkers:
    def __init__(self, config: SlowWorkersConfig) -> None:
        self._config = config
        self._workers: dict[str, _Worker] = {}
        self._looked = -math.inf
        self.left_alone = 0
        """How often that was decided."""

    def add(self, worker_id: str, pool: str) -> None:
        """A new worker; a known one begins anew."""
        self._workers[worker_id] = _Worker(pool, self._config.leave_s)

    def remove(self, worker_id: str) -> None:
        """Unknown ids are no error."""
        self._workers.pop(worker_id, None)

    def set_ready(self, worker_id: str, ready: bool) -> None:
        """Whether it counts among those that are there for new work. Unknown ids are no error."""
        if worker := self._workers.get(worker_id):
            worker.ready = ready

    def took(self, worker_id: str, work: Work, seconds: float, usual_s: float, now: float) -> None:
        """`usual_s`: what its pool takes for the same. Unknown ids are no error."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.until <= now:
            worker.took[work].append(_Took(now, seconds, max(usual_s, _LEAST_S)))

    def on_time(self, now: float) -> list[LeftAlone]:
        """Those that are to be left alone from now on. May be called often."""
        if now < self._looked + LOOK_EVERY_S:
            return []
        self._looked = now
        for worker in self._workers.values():
            self._weigh(worker, now)
        pools = {worker.pool for worker in self._workers.values()}
        return [left for pool in sorted(pools) for left in self._judge(pool, now)]

    def _weigh(self, worker: _Worker, now: float) -> None:
        worker.ratios.clear()
        for work, took in worker.took.items():
            while took and took[0].at < now - RECENT_S:
                took.popleft()
            if len(took) >= self._config.least:
                worker.ratios[work] = median(each.ratio for each in took)

    def _judge(self, pool: str, now: float) -> Iterable[LeftAlone]:
        members = {id_: worker for id_, worker in self._workers.items() if worker.pool == pool and worker.ready}
        alone = sum(worker.until > now for worker in members.values())
        room = math.floor(len(members) * self._config.share) - alone
        slow = []
        for worker_id, worker in members.items():
            if worker.until > now:
                continue
            if (found := self._slowest(worker_id, worker, members)) is not None:
                slow.append((found[0], worker_id, found[1]))
            elif worker.ratios:
                worker.next_s = self._config.leave_s
        for _, worker_id, reason in sorted(slow, reverse=True)[: max(room, 0)]:
            yield self._leave(worker_id, members[worker_id], reason, now)

    def _slowest(self, worker_id: str, worker: _Worker, members: dict[str, _Worker]) -> tuple[float, str] | None:
        """How many times slower than the others, and in words; None: not so much that it matters."""
        found = []
        for work, ratio in worker.ratios.items():
            others = [o.ratios[work] for id_, o in members.items() if id_ != worker_id and work in o.ratios]
            if not others:
                continue
            usual = max(median(others), 1e-9)
            longer_s = median(each.seconds - each.usual_s * usual for each in worker.took[work])
            if ratio >= self._config.factor * usual and longer_s >= self._config.floor_s:
                times = f"{ratio / usual:.1f} times as long as elsewhere in its pool"
                found.append((ratio / usual, f"{work.value} takes {times}, {longer_s:.3g} s more"))
        return max(found, default=None)

    def _leave(self, worker_id: str, worker: _Worker, reason: str, now: float) -> LeftAlone:
        self.left_alone += 1
        worker.until = now + worker.next_s
        worker.next_s = min(2 * worker.next_s, self._config.leave_most_s)
        worker.took = _memory()  # what it does after that time will count
        worker.ratios.clear()
        return LeftAlone(worker_id, worker.until, reason)
