"""How busy every worker is, as columns over all of them, and which of them may be given work.

A worker's load is what this router has reserved there and what, at its last report, went beyond that: a decision counts
at once, and not twice when the worker reports it. Pure state; it must not know links, requests or costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.engine import Role

Rows = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Column = npt.NDArray[np.float64]

_TOKENS, _SEQUENCES, _BLOCKS, _CACHED = range(4)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What does not change while a worker lives."""

    worker_id: str
    role: Role
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Load:
    """Prompt tokens to be computed; sequences running and waiting; KV blocks in use, or needed to the end of the
    request where the load is a reservation. `cached_tokens`: of the same prompts, those that need not be computed: a
    worker cannot tell them apart before it begins, and reports them as to be computed."""

    prefill_tokens: float = 0.0
    sequences: float = 0.0
    blocks: float = 0.0
    cached_tokens: float = 0.0

    @property
    def columns(self) -> tuple[float, float, float, float]:
        return self.prefill_tokens, self.sequences, self.blocks, self.cached_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Loads:
    """The loads of many workers, as `Load`, and how many blocks they have in all. `busy_since`: when each began with
    the first of the prompts that this router has there; inf where it has none."""

    prefill_tokens: Column
    sequences: Column
    blocks: Column
    num_blocks: Column
    busy_since: Column


@dataclass(slots=True)
class _Reserved:
    row: int
    load: Load


class WorkerLoads:
    """Gives each worker a row: its place in every array with one element for each worker. `prefill_may_decode`: whether
    prefill workers stand in for decode workers, as those always can for them."""

    def __init__(self, prefill_may_decode: bool = True) -> None:
        decoders = (Role.PREFILL, Role.DECODE) if prefill_may_decode else (Role.DECODE,)
        self._instead = {Role.PREFILL: (Role.PREFILL, Role.DECODE), Role.DECODE: decoders}
        self.names: tuple[str, ...] = ()  # by row; empty where the row is free
        self._facts: dict[int, WorkerFacts] = {}
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._reserved: dict[str, _Reserved] = {}
        self._own: Column = np.zeros((0, 4))
        self._others: Column = np.zeros((0, 3))
        self._elsewhere: Column = np.zeros((0, 3))
        self._ready: dict[Role, Flags] = {role: np.zeros(0, np.bool_) for role in Role}
        self._busy_since: Column = np.zeros(0)
        self._closed_until: Column = np.zeros(0)
        self._some_closed_until = float("-inf")
        self._num_blocks: Column = np.zeros(0)

    # Workers

    def add(self, facts: WorkerFacts) -> int:
        """A new worker, ready and without load; its row. A known one begins anew."""
        self.remove(facts.worker_id)
        row = self._free.pop() if self._free else self._new_row()
        self._name(row, facts.worker_id)
        self._row[facts.worker_id], self._facts[row] = row, facts
        self._own[row] = self._others[row] = self._elsewhere[row] = 0.0
        self._closed_until[row], self._num_blocks[row] = 0.0, facts.num_blocks
        self._ready[facts.role][row] = True
        return row

    def remove(self, worker_id: str) -> None:
        """With all that was reserved there. Unknown ids are no error."""
        row = self._row.pop(worker_id, None)
        if row is None:
            return
        self._name(row, "")
        facts = self._facts.pop(row)
        self._ready[facts.role][row] = False
        self._reserved = {attempt: held for attempt, held in self._reserved.items() if held.row != row}
        self._free.append(row)

    def row(self, worker_id: str) -> int | None:
        return self._row.get(worker_id)

    def role(self, worker_id: str) -> Role:
        """KeyError: there is no such worker."""
        return self._facts[self._row[worker_id]].role

    def set_ready(self, worker_id: str, ready: bool) -> None:
        """Whether it takes new work, as the worker and the directory say. Unknown ids are no error."""
        if (row := self._row.get(worker_id)) is not None:
            self._ready[self._facts[row].role][row] = ready

    def close_until(self, worker_id: str, time: float) -> None:
        """It gets nothing before this time, unless that is so of all who could do its work; the latest such time
        counts. Unknown ids are no error."""
        if (row := self._row.get(worker_id)) is not None:
            self._closed_until[row] = max(time, self._closed_until[row])
            self._some_closed_until = max(self._some_closed_until, time)

    def report(self, worker_id: str, load: Load) -> None:
        """What the worker says of itself: what exceeds our own share is the work of other routers. Unknown ids are no
        error."""
        if (row := self._row.get(worker_id)) is not None:
            told = np.array((load.prefill_tokens, load.sequences, load.blocks))
            ours = self._own[row, :_CACHED].copy()
            ours[_TOKENS] += self._own[row, _CACHED]
            self._others[row] = np.maximum(told - ours, 0.0)

    def hear_of_others(self, worker_id: str, prefill_tokens: float, sequences: float) -> None:
        """What the other routers say they have reserved there. Unknown ids are no error."""
        if (row := self._row.get(worker_id)) is not None:
            self._elsewhere[row, :2] = prefill_tokens, sequences

    # This router's own

    def reserve(self, attempt_id: str, worker_id: str, load: Load, now: float) -> None:
        """From the moment of the decision. An attempt has one place: a second reservation replaces the first. Unknown
        workers are no error."""
        self.settle(attempt_id)
        if (row := self._row.get(worker_id)) is not None:
            if not self._own[row, _TOKENS]:
                self._busy_since[row] = now
            self._reserved[attempt_id] = _Reserved(row, load)
            self._own[row] += load.columns

    def computed(self, attempt_id: str, now: float) -> bool:
        """Its prompt waits no longer: if there are more, their turn has come. Whether that changed anything; unknown
        ids are no error."""
        held = self._reserved.get(attempt_id)
        if held is None or not held.load.prefill_tokens:
            return False
        self._own[held.row] -= held.load.columns
        held.load = replace(held.load, prefill_tokens=0.0, cached_tokens=0.0)
        self._own[held.row] += held.load.columns
        self._busy_since[held.row] = now
        return True

    def settle(self, attempt_id: str) -> None:
        """It has ended, whichever way. Unknown ids are no error."""
        if held := self._reserved.pop(attempt_id, None):
            self._own[held.row] -= held.load.columns

    def own(self, worker_id: str) -> Load:
        """All that this router has reserved there. Unknown ids are no error."""
        row = self._row.get(worker_id)
        return Load() if row is None else Load(*self._own[row].tolist())

    def worker_of(self, attempt_id: str) -> str:
        """Where the attempt has its reservation; empty for none."""
        held = self._reserved.get(attempt_id)
        return "" if held is None else self.names[held.row]

    @property
    def reserved(self) -> set[str]:
        """The attempts that have a reservation."""
        return set(self._reserved)

    # Columns

    def usable(self, role: Role, avoid: frozenset[str], now: float) -> Rows:
        """Rows of the workers that may be given an attempt now."""
        flags = self._ready[role].copy()
        if now < self._some_closed_until:
            flags &= self._trusted(role, now)
        for worker_id in avoid:
            if (row := self._row.get(worker_id)) is not None:
                flags[row] = False
        return flags.nonzero()[0]

    def of(self, rows: Rows) -> Loads:
        own, told = self._own.take(rows, axis=0), self._others.take(rows, axis=0)
        # Both tell of the same work, and each may be the newer of the two.
        others = np.maximum(told, self._elsewhere.take(rows, axis=0))
        tokens, sequences, blocks = (own[:, :_CACHED] + others).T
        busy_since = np.where(own[:, _TOKENS] > 0, self._busy_since.take(rows), np.inf)
        return Loads(tokens, sequences, blocks, self._num_blocks.take(rows), busy_since)

    def foreign_tokens(self, rows: Rows) -> float:
        """Prompt tokens that other routers say they have on these workers."""
        return float(self._elsewhere[:, _TOKENS].take(rows).sum())

    def check_integrity(self) -> None:
        """Recounts what is reserved. Raises AssertionError where it differs from the columns."""
        recount = np.zeros_like(self._own)
        for held in self._reserved.values():
            recount[held.row] += held.load.columns
        assert np.allclose(recount[list(self._facts)], self._own[list(self._facts)]), "reservations are out of step"
        assert {name: row for row, name in enumerate(self.names) if name} == self._row, "rows are out of step"

    # Inside

    def _trusted(self, role: Role, now: float) -> Flags:
        """Where nobody is trusted who could do the work of this pool, it is not the workers: then all are as good as
        any."""
        trusted: Flags = self._closed_until <= now
        ready = np.logical_or.reduce([self._ready[instead] for instead in self._instead[role]])
        return trusted if (ready & trusted).any() else np.ones_like(trusted)

    def _name(self, row: int, worker_id: str) -> None:
        """Decisions refer to the names as they were, so they are replaced, not changed."""
        self.names = (*self.names[:row], worker_id, *self.names[row + 1 :])

    def _new_row(self) -> int:
        row = len(self.names)
        self.names = (*self.names, "")
        if row >= len(self._num_blocks):
            more = max(8, row)
            self._own = np.vstack([self._own, np.zeros((more, 4))])
            self._others = np.vstack([self._others, np.zeros((more, 3))])
            self._elsewhere = np.vstack([self._elsewhere, np.zeros((more, 3))])
            self._busy_since = np.pad(self._busy_since, (0, more))
            self._closed_until = np.pad(self._closed_until, (0, more))
            self._num_blocks = np.pad(self._num_blocks, (0, more))
            self._ready = {role: np.pad(flags, (0, more)) for role, flags in self._ready.items()}
        return row
