"""A fleet of seats in front of an `Admission`, on a virtual clock: tenants send, seats serve, times are recorded.

The service time of a request is its tokens over the speed of a seat; nothing here is measured on a real clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.config_admission import AdmissionConfig
from router.admission import Admission
from router.admission_events import AdmissionAction, Admit, Arrival, Queue, Refuse


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends requests of `least` to `most` tokens; declares `declared` times what they use."""

    tenant: str
    tokens_per_s: float
    least: int = 500
    most: int = 1_500
    priority: str = ""
    declared: float = 1.0
    from_s: float = 0.0
    until_s: float = float("inf")

    def times(self, draw: random.Random) -> Iterator[float]:
        at = self.from_s
        while at < self.until_s:
            at += draw.expovariate(self.tokens_per_s * 2 / (self.least + self.most))
            yield at


@dataclass(slots=True)
class Report:
    """By tenant. `served` counts tokens of requests that began between the marks given to `run`."""

    served: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ttfts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def share(self, tenant: str) -> float:
        return self.served[tenant] / sum(self.served.values())

    def p99_ttft(self, tenant: str) -> float:
        ordered = sorted(self.ttfts[tenant])
        return ordered[int(len(ordered) * 0.99)]

    def mean_wait(self, tenant: str) -> float:
        return sum(self.waits[tenant]) / len(self.waits[tenant])


class Fleet:
    """`seats` requests at once, each at `seat_tokens_per_s`."""

    def __init__(self, config: AdmissionConfig, senders: list[Sender], seats: int = 8, seed: int = 1) -> None:
        self.admission = Admission(config, running_requests=seats)
        self.capacity = seats * 1_000.0
        self._seat_tokens_per_s = 1_000.0
        self._used: dict[str, int] = {}
        self._tenant: dict[str, str] = {}
        self._came: dict[str, float] = {}
        self._order = itertools.count()
        draw = random.Random(seed)
        self._events: list[tuple[float, int, str, Sender | None]] = []
        self._sources = {sender: sender.times(random.Random(draw.random())) for sender in senders}
        self._draw = draw
        for sender in senders:
            self._schedule(sender)

    def run(self, until_s: float, count_from_s: float = 0.0) -> Report:
        report = Report()
        while self._events and self._events[0][0] <= until_s:
            now, _, request_id, sender = heapq.heappop(self._events)
            actions = self._event(request_id, sender, now)
            self._perform(actions, now, report if now >= count_from_s else Report())
        self.admission.check_integrity()
        return report

    def _event(self, request_id: str, sender: Sender | None, now: float) -> list[AdmissionAction]:
        """A request of `sender` arrives, or the named one ends: often enough that nobody need look between."""
        if sender is not None:
            self._schedule(sender)
            return self.admission.submit(self._arrival(sender, now), now)
        return self.admission.finish(request_id, self._used[request_id], now)

    def _schedule(self, sender: Sender) -> None:
        at = next(self._sources[sender], None)
        if at is not None and at < sender.until_s:
            heapq.heappush(self._events, (at, next(self._order), "", sender))

    def _arrival(self, sender: Sender, now: float) -> Arrival:
        request_id = f"{sender.tenant}-{next(self._order)}"
        used = self._draw.randint(sender.least, sender.most)
        self._used[request_id] = used
        self._tenant[request_id], self._came[request_id] = sender.tenant, now
        return Arrival(request_id, sender.tenant, sender.priority, int(used * sender.declared))

    def _perform(self, actions: list[AdmissionAction], now: float, report: Report) -> None:
        for action in actions:
            match action:
                case Admit(request_id):
                    tenant, used = self._tenant[request_id], self._used[request_id]
                    waited_s, service_s = now - self._came[request_id], used / self._seat_tokens_per_s
                    report.served[tenant] += used
                    report.waits[tenant].append(waited_s)
                    report.ttfts[tenant].append(waited_s + service_s)
                    heapq.heappush(self._events, (now + service_s, next(self._order), request_id, None))
                case Refuse(request_id):
                    report.refused[self._tenant[request_id]] += 1
                case Queue():
                    pass
