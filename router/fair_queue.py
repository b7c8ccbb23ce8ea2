"""The requests of one priority class that wait, and whose turn it is: deficit round robin between tenants, on tokens.

In each round every waiting tenant is given `quantum` times its weight and may start requests while it has credit; what
a request costs beyond that is debt, paid by later rounds, also while the tenant is away. Rounds in which nobody could
start anything are skipped at once: the queue keeps, for each tenant, the round of its next turn, so a step costs
O(log tenants) whatever the quantum. It must not know time, limits or other classes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from router.admission_events import Arrival
from router.keyed_heap import KeyedHeap


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue. `since`: clock time of its arrival; `rank`: its class now, 0 the best; `aged`: it came to
    this class by waiting; `place`: its number in the order in which requests entered the class."""

    arrival: Arrival
    weight: float
    since: float
    rank: int
    cached_tokens: int
    aged: bool = False
    overtaken: int = 0
    place: int = 0

    @property
    def request_id(self) -> str:
        return self.arrival.request_id

    @property
    def tokens(self) -> int:
        return self.arrival.tokens


@dataclass(slots=True, eq=False)
class _Lane:
    """One tenant's requests, and its credit in tokens as of `round`.

    Those that aged into the class are apart: when room is made they are the last to go.
    """

    weight: float
    order: int
    credit: float
    round: int
    fresh: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)
    aged: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)
    tokens: int = 0
    choice: Waiting | None = None

    def __len__(self) -> int:
        return len(self.fresh) + len(self.aged)

    def __iter__(self) -> Iterator[Waiting]:
        """In the order in which they entered the class."""
        return heapq.merge(self.fresh.values(), self.aged.values(), key=lambda entry: entry.place)

    def part(self, aged: bool) -> OrderedDict[str, Waiting]:
        return self.aged if aged else self.fresh


@dataclass(frozen=True, slots=True)
class _Debt:
    """Credit, 0 or less, of a tenant that waits no more, as of `round`: it has had its turn in that one."""

    credit: float
    round: int
    weight: float


class FairQueue:
    """`window` and `most_overtakes` bound how a tenant's own requests may swap places: see `ReorderConfig`."""

    def __init__(self, quantum: int, window: int, most_overtakes: int) -> None:
        self._quantum = quantum
        self._window = window
        self._most_overtakes = most_overtakes
        self._lanes: dict[str, _Lane] = {}
        self._turns: KeyedHeap[tuple[int, int]] = KeyedHeap()  # tenant -> (round of its next turn, order in the round)
        self._weights: KeyedHeap[float] = KeyedHeap()  # tenant -> - tokens / weight
        self._debts: dict[str, _Debt] = {}  # by tenant that waits no more
        self._sweep_debts_at = 256
        self._round = 0
        self._entered = 0
        self._length = 0
        self.tokens = 0
        self.weight = 0.0
        """Of all tenants that wait."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiting]:
        return (entry for lane in self._lanes.values() for entry in lane)

    def push(self, entry: Waiting) -> None:
        tenant = entry.arrival.tenant
        lane = self._lanes.get(tenant) or self._open(tenant, entry.weight)
        self._entered += 1
        entry.place = self._entered
        entry.overtaken = 0
        lane.part(entry.aged)[entry.request_id] = entry
        self._count(lane, 1, entry.tokens)
        self._weights.put(tenant, -lane.tokens / lane.weight)
        if len(lane) <= self._window:
            self._set_turn(tenant, lane)

    def peek(self) -> Waiting | None:
        """Whose turn it is; stays in the queue."""
        turn = self._turns.first()
        return self._lanes[turn[0]].choice if turn else None

    def pop(self) -> Waiting:
        """Takes out what `peek` names, and charges its tenant. Raises IndexError when nothing waits."""
        turn = self._turns.first()
        if turn is None:
            raise IndexError("nothing waits")
        tenant, (self._round, _) = turn  # never less than before: a lane with credit holds the round
        lane = self._lanes[tenant]
        entry = lane.choice
        assert entry is not None, f"{tenant} has a turn, but nothing to do in it"
        self._catch_up(lane)
        lane.credit -= entry.tokens
        for passed in islice(lane, self._window):
            if passed is entry:
                break
            passed.overtaken += 1
        self._take(tenant, lane, entry)
        return entry

    def remove(self, entry: Waiting) -> None:
        """Takes the entry out without a charge; it must be in the queue."""
        tenant = entry.arrival.tenant
        lane = self._lanes[tenant]
        self._catch_up(lane)
        self._take(tenant, lane, entry)

    def next_up(self) -> list[str]:
        """The requests among which the tenant whose turn is next has its choice."""
        turn = self._turns.first()
        return [entry.request_id for entry in islice(self._lanes[turn[0]], self._window)] if turn else []

    def refresh(self, tenant: str) -> None:
        """Cached tokens of a request of this tenant have changed."""
        self._set_turn(tenant, self._lanes[tenant])

    def settle(self, tenant: str, tokens: int) -> None:
        """A request that was charged used so many tokens less than expected; more, if negative."""
        if lane := self._lanes.get(tenant):
            self._catch_up(lane)
            lane.credit += tokens
            self._set_turn(tenant, lane)
        elif debt := self._debts.get(tenant):
            self._debts[tenant] = _Debt(min(0.0, debt.credit + tokens), debt.round, debt.weight)

    def backlog(self, tenant: str) -> int:
        """Tokens of the tenant that wait."""
        lane = self._lanes.get(tenant)
        return lane.tokens if lane else 0

    def newest_of_heaviest(self) -> tuple[Waiting, float] | None:
        """The last request of the tenant with the most waiting tokens for its weight, and how many those are."""
        first = self._weights.first()
        if first is None:
            return None
        tenant, heaviness = first
        lane = self._lanes[tenant]
        newest = next(reversed(lane.fresh.values()), None) or next(reversed(lane.aged.values()))
        return newest, -heaviness

    def check_integrity(self) -> None:
        """Recounts from the requests; raises AssertionError where the books differ."""
        assert self._length == sum(1 for _ in self), f"{self._length} are counted, {sum(1 for _ in self)} wait"
        assert self.tokens == sum(entry.tokens for entry in self)
        assert set(self._lanes) == {entry.arrival.tenant for entry in self}
        assert abs(self.weight - sum(lane.weight for lane in self._lanes.values())) < 1e-6
        assert len(self._turns) == len(self._weights) == len(self._lanes)
        for tenant, lane in self._lanes.items():
            assert lane.tokens == sum(entry.tokens for entry in lane), f"{tenant}: tokens do not add up"
            assert lane.choice in list(islice(lane, self._window)), f"{tenant}: the next one is out of its window"
            assert all(entry.overtaken <= self._most_overtakes for entry in lane), f"{tenant}: one is left behind"
        assert not (self._debts and not self._lanes), "debts to nobody"

    def _open(self, tenant: str, weight: float) -> _Lane:
        debt = self._debts.pop(tenant, None)
        a_turn = self._quantum * weight
        # Who owes nothing has his turn in this very round; credit is not saved up.
        credit = min(a_turn, self._left(debt)) if debt else a_turn
        self._entered += 1
        lane = _Lane(weight, self._entered, credit, self._round)
        self._lanes[tenant] = lane
        self.weight += weight
        return lane

    def _take(self, tenant: str, lane: _Lane, entry: Waiting) -> None:
        del lane.part(entry.aged)[entry.request_id]
        self._count(lane, -1, -entry.tokens)
        if lane:
            self._weights.put(tenant, -lane.tokens / lane.weight)
            self._set_turn(tenant, lane)
        else:
            self._close(tenant, lane)

    def _close(self, tenant: str, lane: _Lane) -> None:
        del self._lanes[tenant]
        self._turns.drop(tenant)
        self._weights.drop(tenant)
        self.weight -= lane.weight
        if not self._lanes:
            self._debts.clear()  # nobody is there who was kept waiting
            self.weight = 0.0
        else:
            self._debts[tenant] = _Debt(min(0.0, lane.credit), lane.round, lane.weight)
            self._sweep_debts()

    def _left(self, debt: _Debt) -> float:
        return debt.credit + (self._round - debt.round) * self._quantum * debt.weight

    def _sweep_debts(self) -> None:
        """Forgets what has been paid, when so many have come that it is worth looking."""
        if len(self._debts) > self._sweep_debts_at:
            self._debts = {tenant: debt for tenant, debt in self._debts.items() if self._left(debt) <= 0}
            self._sweep_debts_at = 256 + 2 * len(self._debts)

    def _count(self, lane: _Lane, requests: int, tokens: int) -> None:
        self._length += requests
        self.tokens += tokens
        lane.tokens += tokens

    def _catch_up(self, lane: _Lane) -> None:
        """Gives the lane its credit of the rounds that have passed."""
        lane.credit += (self._round - lane.round) * self._quantum * lane.weight
        lane.round = self._round

    def _set_turn(self, tenant: str, lane: _Lane) -> None:
        """Who of the lane is next, and in which round: the first in which it has credit."""
        lane.choice = self._choose(lane)
        rounds = 0 if lane.credit > 0 else int(-lane.credit // (self._quantum * lane.weight)) + 1
        self._turns.put(tenant, (lane.round + rounds, lane.order))

    def _choose(self, lane: _Lane) -> Waiting:
        candidates = islice(lane, self._window)
        best = next(candidates)
        if best.overtaken >= self._most_overtakes:
            return best
        for entry in candidates:
            if entry.cached_tokens > best.cached_tokens:
                best = entry
            if entry.overtaken >= self._most_overtakes:
                break  # nothing behind this one may pass it
        return best
