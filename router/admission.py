"""Who may run now, who waits and who is refused: a pure state machine over tenants, classes, tokens and time.

Every event takes the time and returns actions. Better classes go first, and waiting moves a request up; within a class
tenants share by weight. What a tenant's own quota says comes with the arrival. It must not know workers, and it keeps
no clock: `on_time` is to be called a few times a second.

    submit ──▶ Refuse                        cancel, finish: the caller ends it
       │  └──▶ Admit ──▶ (runs) ──▶ ended
       └──▶ Queue ──▶ Admit, or Refuse: waited too long, cannot make its deadline, made room for another

A request that runs is starting until its first token: of those, prompts for so much computing at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config_admission import AdmissionConfig
from cluster.errors import BatonError, DeadlineExceeded, DeadlineUnreachable, InvalidRequest, Overloaded, TenantLimited
from cluster.quota import Denied, limits_of
from router.admission_events import AdmissionAction, Admit, Arrival, Occupancy, Queue, Refuse, give_back
from router.drain_rate import DrainRate
from router.fair_queue import Waiting
from router.waiting_room import WaitingRoom

_RETRY_AT_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class _Running:
    """`charged_to`: the rank of the class in which it counts for its tenant's share; None: it ran without a wait."""

    arrival: Arrival
    charged_to: int | None


class Admission:
    """`running_requests`: how many may run at once."""

    def __init__(self, config: AdmissionConfig, running_requests: int) -> None:
        self._config = config
        self._ranks = {name: rank for rank, name in enumerate(config.classes)}
        self._most_requests = running_requests
        self._most_tokens = config.running_tokens or float("inf")
        self._most_starting = float("inf")
        self._room = WaitingRoom(config)
        self._running: dict[str, _Running] = {}
        self._running_tokens = 0
        self._starting: set[str] = set()
        self._starting_tokens = 0
        self._rate = DrainRate(config.cold_tokens_per_s)
        self._seen = 0.0  # time of the last event

    def __repr__(self) -> str:
        return f"<Admission {self.occupancy}>"

    # Events

    def submit(self, arrival: Arrival, now: float) -> list[AdmissionAction]:
        """The last action is the answer to this arrival: Admit, Queue or Refuse.

        Raises ValueError when the id is in use, `InvalidRequest` for a class that the tenant may not use.
        """
        if arrival.request_id in self._room or arrival.request_id in self._running:
            raise ValueError(f"request {arrival.request_id} was submitted before")
        rank = self.rank_of(arrival.tenant, arrival.priority)
        actions = self.on_time(now)
        refusal = self._refusal(arrival, rank, now)
        if refusal is not None:
            return [*actions, *self._refuse(arrival, refusal)]
        if self._runs_at_once(arrival, rank):
            self._run(arrival, None)
            return [*actions, Admit(arrival.request_id)]
        return [*actions, *self._enqueue(arrival, rank, now)]

    def started(self, request_id: str, now: float) -> list[AdmissionAction]:
        """The request has its first token. Unknown ids, and a second time, are no error."""
        return self.on_time(now) if self._begun(request_id) else []

    def finish(self, request_id: str, used_tokens: int, now: float) -> list[AdmissionAction]:
        """A running request has ended, having made the fleet compute `used_tokens`. Unknown ids are no error."""
        self._begun(request_id)
        running = self._running.pop(request_id, None)
        if running is None:
            return []
        arrival = running.arrival
        self._running_tokens -= arrival.tokens
        if running.charged_to is not None:
            self._room.settle(running.charged_to, arrival.tenant, arrival.tokens - used_tokens)
        return [*self._give_back(arrival, used_tokens), *self.on_time(now)]

    def cancel(self, request_id: str, now: float, used_tokens: int = 0) -> list[AdmissionAction]:
        """Nobody waits for the request any more, whether it is queued or runs. Unknown ids are no error."""
        if request_id not in self._room:
            return self.finish(request_id, used_tokens, now)
        entry = self._room.leave(request_id)
        return [*self._give_back(entry.arrival, None), *self.on_time(now)]

    def on_time(self, now: float) -> list[AdmissionAction]:
        """Ends what has waited too long, moves up what has waited long, and admits what has room."""
        if self._room and self._most_requests:  # how fast it moves is not learnt while nothing may
            self._rate.waited(max(0.0, now - self._seen))
        self._seen = now
        self._room.promote(now)
        actions = [
            action
            for entry in self._room.expired(now)
            for action in self._refuse(entry.arrival, self._too_late(entry, now))
        ]
        return [*actions, *self._admit()]

    def on_cached(self, request_id: str, cached_tokens: int) -> None:
        """So many of a queued request's prompt tokens are cached somewhere by now: who comes next is decided anew from
        the next event on. Unknown ids are no error."""
        self._room.refresh(request_id, cached_tokens)

    def bound(self, running_requests: int, starting_tokens: float = float("inf")) -> None:
        """So many may run at once from the next event on, and prompts of so many tokens start. What runs already is
        left alone."""
        self._most_requests, self._most_starting = running_requests, starting_tokens

    # Questions

    @property
    def occupancy(self) -> Occupancy:
        waiting = len(self._room), self._room.tokens
        return Occupancy(*waiting, len(self._running), self._running_tokens, self._starting_tokens)

    @property
    def crowded(self) -> bool:
        """Whether the next request may have to wait."""
        if self._room or len(self._running) >= self._most_requests or self._most_tokens != float("inf"):
            return True
        return bool(self._starting) and self._most_starting != float("inf")

    def rank_of(self, tenant: str, priority: str) -> int:
        """The rank of a class, 0 the best; an empty name: the default class, or the best that the tenant may use.

        Raises `InvalidRequest` for a class that does not exist or that is not the tenant's.
        """
        allowed = self._config.tenant(tenant).classes or self._config.classes
        default = self._config.default_class
        name = priority or (default if default in allowed else min(allowed, key=lambda name: self._ranks[name]))
        if name not in allowed:
            raise InvalidRequest(f"priority {name!r}: not one that you may use; valid: {', '.join(allowed)}")
        return self._ranks[name]

    def check(self, tenant: str, priority: str, requests: int) -> None:
        """A quick look before anything is prepared; `submit` decides. Leaves everything as it is.

        Raises `InvalidRequest`; `Overloaded` when not even small requests of this tenant could wait.
        """
        rank = self.rank_of(tenant, priority)
        if not self._room and len(self._running) + requests <= self._most_requests:
            return
        if not self._room.could_take(tenant, rank, self._config.tenant(tenant).weight, requests):
            wait = self._room.tokens / self._rate.tokens_per_s
            raise Overloaded(f"{self._full()}: try again later", _retry_s(wait))

    def next_up(self) -> list[str]:
        """The requests among which the next one will be chosen: worth looking up their cached tokens anew."""
        return self._room.next_up()

    def check_integrity(self) -> None:
        """Recounts from the requests; raises AssertionError where the books or the bounds differ."""
        assert self._running_tokens == sum(running.arrival.tokens for running in self._running.values())
        assert not any(request_id in self._room for request_id in self._running), "a request waits and runs"
        assert self._starting <= self._running.keys(), "a request starts that does not run"
        assert self._starting_tokens == sum(self._running[id_].arrival.prompt_tokens for id_ in self._starting)
        if len(self._running) > 1:
            assert self._running_tokens <= self._most_tokens
        waiting = self._room.peek()
        assert waiting is None or not self._fits(waiting.arrival), "a request waits although it has room"
        self._room.check_integrity()

    # Inside

    def _refusal(self, arrival: Arrival, rank: int, now: float) -> BatonError | None:
        """Why the request must not even wait; None: it may."""
        if isinstance(arrival.verdict, Denied):
            return _limited(arrival.tenant, arrival.verdict)
        wait = 0.0 if self._runs_at_once(arrival, rank) else self._expected_s(arrival, rank)
        if wait > self._config.queue.most_wait_s < (aged := self._aged_s(arrival, rank)):
            return Overloaded(f"the queue is {aged:.0f} s long: try again later", _retry_s(aged))
        if arrival.deadline is None:
            return None
        late = now + wait - arrival.deadline
        if late <= 0:
            return None
        return DeadlineUnreachable(
            f"the queue alone takes {wait:.1f} s, {late:.1f} s more than the deadline leaves: allow more time, or try "
            "again later",
            _retry_s(late),
        )

    def _enqueue(self, arrival: Arrival, rank: int, now: float) -> list[AdmissionAction]:
        expected = self._expected_s(arrival, rank)
        pushed_out = self._room.enter(arrival, rank, self._weight(arrival), now)
        full = self._full()
        if pushed_out is None:
            return self._refuse(arrival, Overloaded(f"{full}: try again later", _retry_s(expected)))
        gone = Overloaded(f"{full}, and others' requests come before this one: try again later", _retry_s(expected))
        actions = [action for entry in pushed_out for action in self._refuse(entry.arrival, gone)]
        admitted = self._admit()  # the one that waited for more room may have been pushed out
        if arrival.request_id in self._room:
            return [*actions, *admitted, Queue(arrival.request_id)]
        mine = next(action for action in admitted if action.request_id == arrival.request_id)
        return [*actions, *(action for action in admitted if action is not mine), mine]

    def _admit(self) -> list[Admit]:
        admitted = []
        while (entry := self._room.peek()) and self._fits(entry.arrival):
            self._room.pop()
            self._rate.drained(entry.tokens)
            self._run(entry.arrival, entry.rank)
            admitted.append(Admit(entry.request_id))
        return admitted

    def _run(self, arrival: Arrival, charged_to: int | None) -> None:
        self._running[arrival.request_id] = _Running(arrival, charged_to)
        self._running_tokens += arrival.tokens
        self._starting.add(arrival.request_id)
        self._starting_tokens += arrival.prompt_tokens

    def _begun(self, request_id: str) -> bool:
        """Whether it was starting until now."""
        if request_id not in self._starting:
            return False
        self._starting.discard(request_id)
        self._starting_tokens -= self._running[request_id].arrival.prompt_tokens
        return True

    def _runs_at_once(self, arrival: Arrival, rank: int) -> bool:
        return self._room.nobody_up_to(rank) and self._fits(arrival)

    def _fits(self, arrival: Arrival) -> bool:
        """A request larger than all room runs when it is alone, a longer prompt starts alone."""
        if len(self._running) >= self._most_requests:
            return False
        if self._starting and self._starting_tokens + arrival.prompt_tokens > self._most_starting:
            return False
        return not self._running or self._running_tokens + arrival.tokens <= self._most_tokens

    def _expected_s(self, arrival: Arrival, rank: int) -> float:
        return self._room.tokens_ahead(arrival, rank, self._weight(arrival)) / self._rate.tokens_per_s

    def _aged_s(self, arrival: Arrival, rank: int) -> float:
        """As `_expected_s`, if it moves up while it waits."""
        aging_s = self._config.queue.aging_s
        return min((rank - above) * aging_s + self._expected_s(arrival, above) for above in range(rank + 1))

    def _full(self) -> str:
        return f"{len(self._room)} requests of {self._room.tokens} tokens wait already"

    def _weight(self, arrival: Arrival) -> float:
        return self._config.tenant(arrival.tenant).weight

    def _refuse(self, arrival: Arrival, error: BatonError) -> list[AdmissionAction]:
        return [*self._give_back(arrival, None), Refuse(arrival.request_id, error)]

    def _give_back(self, arrival: Arrival, used_tokens: int | None) -> list[AdmissionAction]:
        if arrival.verdict is None or isinstance(arrival.verdict, Denied):
            return []
        return [give_back(arrival, limits_of(self._config.tenant(arrival.tenant)), used_tokens)]

    def _too_late(self, entry: Waiting, now: float) -> BatonError:
        waited = now - entry.since
        if waited >= self._config.queue.most_wait_s:
            return Overloaded(f"no room in {waited:.0f} s: try again later", _retry_s(waited))
        return DeadlineExceeded(f"waited {waited:.1f} s; begun now, the answer would come after the deadline")


def _retry_s(seconds: float) -> float:
    return min(_RETRY_AT_MOST_S, max(1.0, seconds))


_LIMITS = {"requests": "requests a second", "tokens": "tokens a second", "concurrency": "requests at once"}


def _limited(tenant: str, denied: Denied) -> TenantLimited:
    text = f"tenant {tenant} is over its limit of {_LIMITS[denied.limit]}: try again in {denied.retry_after_s:.1f} s"
    return TenantLimited(text, denied.retry_after_s)
