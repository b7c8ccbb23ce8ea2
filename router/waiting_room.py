"""All requests that wait, in their classes: bounds, aging, patience, and who makes room for whom.

Pure; the time is an argument. It must not know what runs, nor what a refused client hears.

Requests move up when better classes have stood before theirs for `aging_s`. Who waits only for others of his own class
does not: else a flood would grow old, and pass by everybody who keeps within his share.

When a bound is reached, room is made by the newest request of the tenant that has most waiting for its weight: in a
worse class first, then in the same class if that tenant is heavier than the newcomer's. Each class has a reserve: what
lies within it is not pushed out by other classes, and a class below its reserve may push out of better ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config_admission import AdmissionConfig, QueueConfig
from router.admission_events import Arrival
from router.fair_queue import FairQueue, Waiting
from router.keyed_heap import KeyedHeap


class WaitingRoom:
    def __init__(self, config: AdmissionConfig) -> None:
        self._bounds: QueueConfig = config.queue
        reorder = config.reorder
        self._classes = [
            FairQueue(config.quantum_tokens, reorder.window, reorder.most_overtakes) for _ in config.classes
        ]
        self._entries: dict[str, Waiting] = {}
        self._expiries: KeyedHeap[float] = KeyedHeap()
        self._aging: list[KeyedHeap[float]] = [KeyedHeap() for _ in config.classes]  # request -> when it came there
        self._was_first: list[float] = [float("-inf")] * len(config.classes)  # when no better class was waiting, last
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    # Coming and going

    def enter(self, arrival: Arrival, rank: int, weight: float, now: float) -> list[Waiting] | None:
        """Takes the request in and returns who was pushed out for it; None: there is no room, nothing has changed."""
        pushed_out = self._make_room(arrival, rank, weight)
        if pushed_out is None:
            return None
        entry = Waiting(arrival, weight, now, rank, arrival.cached_tokens)
        self._entries[entry.request_id] = entry
        self.tokens += entry.tokens
        self._expiries.put(entry.request_id, self._expiry(entry))
        self._join_class(entry, now)
        return pushed_out

    def could_take(self, tenant: str, rank: int, weight: float, requests: int) -> bool:
        """Whether small requests of this tenant would find room now, if only by pushing out others."""
        if len(self) + requests <= self._bounds.max_requests and self.tokens + requests <= self._bounds.max_tokens:
            return True
        return self._victim(rank, (self._classes[rank].backlog(tenant) + 1) / weight) is not None

    def leave(self, request_id: str) -> Waiting:
        """Takes the request out, uncharged. Raises KeyError when it does not wait."""
        entry = self._entries[request_id]
        self._classes[entry.rank].remove(entry)
        self._forget(entry)
        return entry

    def peek(self) -> Waiting | None:
        """Whose turn it is, of the best class in which somebody waits."""
        return self._classes[self._first_class].peek()

    def pop(self) -> Waiting:
        """Takes out what `peek` names; its tenant is charged. Raises IndexError when nothing waits."""
        entry = self._classes[self._first_class].pop()
        self._forget(entry)
        return entry

    # Time

    def promote(self, now: float) -> None:
        """Moves up what better classes have kept waiting long enough. To be called before anything changes."""
        self._was_first[self._first_class] = now
        while (due := self._next_promotion()) and due[0] <= now:
            entry = self._entries[due[1]]
            self._classes[entry.rank].remove(entry)
            self._aging[entry.rank].drop(entry.request_id)
            entry.rank -= 1
            entry.aged = True
            self._join_class(entry, due[0])

    def expired(self, now: float) -> list[Waiting]:
        """Takes out what makes no sense to begin any more."""
        gone = []
        while (due := self._expiries.first()) and due[1] <= now:
            gone.append(self.leave(due[0]))
        return gone

    # What is known of those who wait

    def tokens_ahead(self, arrival: Arrival, rank: int, weight: float) -> float:
        """Tokens to be started before this request, if it came now and nobody after it. Its tenant's share counts."""
        own = self._classes[rank]
        backlog = own.backlog(arrival.tenant)
        weights = own.weight + (0.0 if backlog else weight)
        fair = (backlog + arrival.tokens) * weights / weight - arrival.tokens
        return sum(better.tokens for better in self._classes[:rank]) + min(own.tokens, fair)

    def nobody_up_to(self, rank: int) -> bool:
        """Nothing waits in this class or a better one."""
        return not any(self._classes[: rank + 1])

    def settle(self, rank: int, tenant: str, tokens: int) -> None:
        """A request taken out by `pop` used so many tokens less than expected; more, if negative."""
        self._classes[rank].settle(tenant, tokens)

    def refresh(self, request_id: str, cached_tokens: int) -> None:
        if entry := self._entries.get(request_id):
            entry.cached_tokens = cached_tokens
            self._classes[entry.rank].refresh(entry.arrival.tenant)

    def next_up(self) -> list[str]:
        """The requests among which the next one will be chosen."""
        return next((waiting.next_up() for waiting in self._classes if waiting), [])

    def check_integrity(self) -> None:
        """Recounts from the requests; raises AssertionError where the books or the bounds differ."""
        queued = list(self._all())
        assert {entry.request_id for entry in queued} == set(self._entries), "the classes and the directory differ"
        assert len(queued) == len(self._entries)
        assert self.tokens == sum(entry.tokens for entry in queued)
        assert len(queued) <= self._bounds.max_requests
        assert self.tokens <= self._bounds.max_tokens
        assert len(self._expiries) == len(queued)
        assert sum(map(len, self._aging)) == len(queued)
        assert all(entry.request_id in self._aging[entry.rank] for entry in queued)
        for rank, waiting in enumerate(self._classes):
            assert all(entry.rank == rank for entry in waiting)
            waiting.check_integrity()

    # Inside

    @property
    def _first_class(self) -> int:
        """The rank of the best class in which somebody waits; 0 where nobody does."""
        return next((rank for rank, waiting in enumerate(self._classes) if waiting), 0)

    def _all(self) -> Iterator[Waiting]:
        return (entry for waiting in self._classes for entry in waiting)

    def _join_class(self, entry: Waiting, now: float) -> None:
        self._classes[entry.rank].push(entry)
        self._aging[entry.rank].put(entry.request_id, now)

    def _next_promotion(self) -> tuple[float, str] | None:
        """When, and whose."""
        behind = range(self._first_class + 1, len(self._classes))
        oldest = ((rank, first) for rank in behind if (first := self._aging[rank].first()))
        due = ((max(came, self._was_first[rank]) + self._bounds.aging_s, name) for rank, (name, came) in oldest)
        return min(due, default=None)

    def _forget(self, entry: Waiting) -> None:
        del self._entries[entry.request_id]
        self.tokens -= entry.tokens
        self._expiries.drop(entry.request_id)
        self._aging[entry.rank].drop(entry.request_id)

    def _expiry(self, entry: Waiting) -> float:
        patience = entry.since + self._bounds.most_wait_s
        deadline = entry.arrival.deadline
        return patience if deadline is None else min(patience, deadline)

    def _make_room(self, arrival: Arrival, rank: int, weight: float) -> list[Waiting] | None:
        if arrival.tokens > self._bounds.max_tokens:
            return None
        heaviness = (self._classes[rank].backlog(arrival.tenant) + arrival.tokens) / weight
        pushed_out: list[Waiting] = []
        requests, tokens = len(self), self.tokens
        while requests >= self._bounds.max_requests or tokens + arrival.tokens > self._bounds.max_tokens:
            victim = self._victim(rank, heaviness)
            if victim is None:
                for entry in reversed(pushed_out):
                    self._classes[entry.rank].push(entry)
                return None
            self._classes[victim.rank].remove(victim)
            pushed_out.append(victim)
            requests, tokens = requests - 1, tokens - victim.tokens
        for entry in pushed_out:
            self._forget(entry)
        return pushed_out

    def _victim(self, rank: int, heaviness: float) -> Waiting | None:
        for worse in range(len(self._classes) - 1, rank, -1):
            if self._beyond_reserve(worse) and (found := self._classes[worse].newest_of_heaviest()):
                return found[0]
        found = self._classes[rank].newest_of_heaviest()
        if found and found[1] > heaviness:
            return found[0]
        if not self._beyond_reserve(rank):
            for better in range(rank - 1, -1, -1):
                if self._beyond_reserve(better) and (found := self._classes[better].newest_of_heaviest()):
                    return found[0]
        return None

    def _beyond_reserve(self, rank: int) -> bool:
        waiting, kept = self._classes[rank], self._bounds.class_reserve
        return waiting.tokens > kept * self._bounds.max_tokens or len(waiting) > kept * self._bounds.max_requests
