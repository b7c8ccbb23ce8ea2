"""The store of one process: for a single router, for the simulator, and for tests with several routers in one process.

The same rules as `redis_store.py`, and the same tests; it is never away. `now` gives seconds of any monotonic clock.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.config_store import StoreConfig
from cluster.quota import Claim, QuotaTable, Verdict
from cluster.store import PINS_AT_ONCE, Changes, DrainMark, Pin, Record, Reserved, Shared

_SWEEP_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Router:
    reserved: Mapping[str, Reserved]
    expiry: float


class MemoryStore:
    def __init__(self, config: StoreConfig, now: Callable[[], float]) -> None:
        self._config = config
        self._now = now
        self._incarnation = uuid.uuid4().hex
        self._routers: dict[str, _Router] = {}
        self._quotas = QuotaTable(config.lease_s, ended_s=config.lease_s)
        self._swept = now()
        self._marks: dict[str, DrainMark] = {}
        self._pins: deque[tuple[int, float, Pin]] = deque(maxlen=config.max_pins)  # number, when, what
        self._pinned = 0
        self._journal: OrderedDict[str, bytes] = OrderedDict()

    async def exchange(self, router_id: str, changes: Changes) -> Shared:
        now = self._now()
        self._routers = {name: router for name, router in self._routers.items() if router.expiry > now}
        self._routers[router_id] = _Router(dict(changes.reserved), now + self._config.lease_s)
        self._exchange_claims(changes, now)
        for pin in changes.pins:
            self._pinned += 1
            self._pins.append((self._pinned, now, pin))
        for mark in changes.marks:
            self._marks.setdefault(mark.worker_id, mark)
        self._write(changes.records)
        pins, cursor = self._pins_after(changes.cursor, now)
        others = [router.reserved for name, router in self._routers.items() if name != router_id]
        return Shared(total(others), pins, cursor, dict(self._marks), len(self._routers), self._incarnation)

    async def claim(self, claim: Claim) -> Verdict:
        return self._quotas.claim(claim, self._now())

    async def mark(self, mark: DrainMark) -> None:
        self._marks[mark.worker_id] = mark

    async def unmark(self, worker_id: str) -> None:
        self._marks.pop(worker_id, None)

    async def recall(self, request_id: str) -> bytes | None:
        return self._journal.get(request_id)

    async def leave(self, router_id: str) -> None:
        self._routers.pop(router_id, None)

    async def close(self) -> None:
        """Nothing is open."""

    def _exchange_claims(self, changes: Changes, now: float) -> None:
        for tenant, claim_ids in changes.renewed.items():
            for claim_id in claim_ids:
                self._quotas.renew(tenant, claim_id, now)
        for claim in changes.noted:
            self._quotas.note(claim, now)
        for returned in changes.returned:
            self._quotas.give_back(returned, now)
        if self._swept + _SWEEP_EVERY_S <= now:
            self._quotas.forget_idle(now)
            self._swept = now

    def _write(self, records: tuple[Record, ...]) -> None:
        for record in records:
            self._journal.pop(record.request_id, None)
            self._journal[record.request_id] = record.body
        while len(self._journal) > self._config.journal_records:
            self._journal.popitem(last=False)

    def _pins_after(self, cursor: str, now: float) -> tuple[tuple[Pin, ...], str]:
        while self._pins and self._pins[0][1] + self._config.pin_s <= now:
            self._pins.popleft()
        seen = int(cursor or 0)
        skip = max(0, seen - self._pins[0][0] + 1) if self._pins else 0  # numbers have no gaps
        new = [self._pins[at] for at in range(skip, min(len(self._pins), skip + PINS_AT_ONCE))]
        pins = tuple(Pin(pin.session_id, pin.worker_id, now - when) for _, when, pin in new)
        return pins, str(new[-1][0] if new else seen)


def total(shares: Sequence[Mapping[str, Reserved]]) -> dict[str, Reserved]:
    """The sum by worker."""
    sums: dict[str, Reserved] = {}
    for share in shares:
        for worker_id, reserved in share.items():
            known = sums.get(worker_id)
            sums[worker_id] = reserved if known is None else known + reserved
    return sums
