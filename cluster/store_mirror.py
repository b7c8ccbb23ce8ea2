"""What one router knows of the shared state, in memory: answered at once, refreshed in the background.

Fails static: while the store is away the router goes on with what it knew, enforces its part of each tenant's limits
alone, and says since when. On return it says everything again; the store counts nothing twice. `run` is the background
task, owned by the router. It must not know where the state is kept.

    reserve, pin, give_back, record        told to the store within a period; never wait, never fail
    reserved_elsewhere, pinned, marks      answered from memory; never wait, never fail
    claim                                  waits for the store, at most its deadline; while it is away not at all
    recall                                 waits, at most the deadline; raises `StoreUnavailable`
    mark, unmark                           the same, and first for an exchange under way
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.clock import Clock
from cluster.config_store import StoreConfig
from cluster.errors import StoreUnavailable
from cluster.pin_table import PinTable
from cluster.quota import Claim, Granted, Limits, QuotaTable, Returned, Verdict
from cluster.store import NOTHING, Changes, DrainMark, Pin, Record, Reserved, Shared, Store
from cluster.store_outbox import Outbox

logger = logging.getLogger(__name__)

_RENEWALS_PER_LEASE = 3


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """`away_since`: clock time since when the store does not answer, and `reason` why; None and empty while it does.
    `dropped` counts writes that found no room to wait in. `routers`: how many were alive at its last answer; before its
    first, how many there should be."""

    away_since: float | None
    reason: str
    dropped: int
    routers: int

    @property
    def degraded(self) -> bool:
        return self.away_since is not None


class StoreMirror:
    """`router_id` is new with every start of a router. `routers`: how many there should be, which counts until the
    store has said how many there are."""

    def __init__(self, store: Store, router_id: str, config: StoreConfig, clock: Clock, routers: int = 1) -> None:
        self._store = store
        self._router_id = router_id
        self._config = config
        self._clock = clock
        self._outbox = Outbox(config.max_pending)
        self._pins = PinTable(config.pin_s, config.max_pins)
        self._own: dict[str, Reserved] = {}
        self._others: Mapping[str, Reserved] = {}
        self._marks: dict[str, DrainMark] = {}
        # Connections overtake each other: what an exchange heard of marks may be older than a mark made meanwhile, and
        # what it puts back newer than its unmaking. So one at a time.
        self._marking = asyncio.Lock()
        self._held: dict[str, Claim] = {}
        self._alone = QuotaTable(lease_s=float("inf"))  # this router knows itself when its claims end
        self._renewed_at = float("-inf")
        self._cursor = ""
        self._incarnation = ""
        self._store_is_new = False  # it lost its content: what this router knows must be put back
        self._heard_at = clock.now()
        self._routers = routers
        self._away_since: float | None = None
        self._reason = ""

    def __repr__(self) -> str:
        return f"<StoreMirror {self._router_id} {self.health}>"

    # Answered at once

    @property
    def health(self) -> StoreHealth:
        return StoreHealth(self._away_since, self._reason, self._outbox.dropped, self._routers)

    def reserve(self, worker_id: str, share: Reserved) -> None:
        """All that this router has reserved on the worker now, in place of what it said before."""
        if share == NOTHING:
            self._own.pop(worker_id, None)
        else:
            self._own[worker_id] = share

    def reserved_elsewhere(self, worker_id: str) -> Reserved:
        """By all other routers. Nothing, when the store has been away for longer than a lease."""
        stale = self._clock.now() - self._heard_at > self._config.lease_s
        return NOTHING if stale else self._others.get(worker_id, NOTHING)

    def pin(self, session_id: str, worker_id: str) -> None:
        if self._pins.put(session_id, worker_id, self._clock.now()):
            self._outbox.pin(Pin(session_id, worker_id))

    def pinned(self, session_id: str) -> str | None:
        return self._pins.get(session_id, self._clock.now())

    @property
    def marks(self) -> Mapping[str, DrainMark]:
        """Drain marks by worker."""
        return self._marks

    def record(self, request_id: str, body: bytes) -> None:
        self._outbox.record(Record(request_id, body))

    def give_back(self, returned: Returned) -> None:
        """Ends a claim. An unknown one is no error."""
        self._held.pop(returned.claim_id, None)
        self._alone.give_back(replace(returned, limits=self._part(returned.limits)), self._clock.now())
        self._outbox.give_back(returned)

    # Wait for the store

    async def claim(self, claim: Claim) -> Verdict:
        """What the tenant's quota says. A claim that is granted must be given back."""
        if self._away_since is not None:
            return self._claim_alone(claim)
        try:
            verdict = await self._store.claim(claim)
        except StoreUnavailable as error:
            self._lost(error)
            return self._claim_alone(claim, perhaps_taken=True)
        except BaseException:  # nobody waits for the answer any more, but the store may grant it
            self._outbox.give_back(_unserved(claim))
            raise
        if isinstance(verdict, Granted):
            self._held[claim.claim_id] = claim
            self._alone.note(replace(claim, limits=self._part(claim.limits)), self._clock.now(), charge=False)
        return verdict

    async def mark(self, mark: DrainMark) -> None:
        async with self._marking:
            await self._store.mark(mark)
            self._marks[mark.worker_id] = mark

    async def unmark(self, worker_id: str) -> None:
        async with self._marking:
            await self._store.unmark(worker_id)
            self._marks.pop(worker_id, None)

    async def recall(self, request_id: str) -> bytes | None:
        return await self._store.recall(request_id)

    # In the background

    async def run(self) -> None:
        """Exchanges once a period, until it is cancelled."""
        while True:
            await self.exchange()
            await self._clock.sleep(self._config.period_s)

    async def exchange(self) -> None:
        """Says what is new and hears what others said. A store that is away is noted, not raised."""
        async with self._marking:
            asked_at, changes = self._clock.now(), self._changes()
            try:
                shared = await self._store.exchange(self._router_id, changes)
            except StoreUnavailable as error:
                self._outbox.put_back(changes)
                self._lost(error)
            except BaseException:
                self._outbox.put_back(changes)
                raise
            else:
                self._hear(changes, shared, asked_at)

    async def leave(self) -> None:
        """The last word: what waits is said, what is reserved is taken back. After `run` has ended."""
        self._own.clear()
        await self.exchange()
        while self._outbox and self._away_since is None:
            await self.exchange()
        try:
            await self._store.leave(self._router_id)
        except StoreUnavailable as error:
            logger.warning("the store did not hear that this router leaves; its lease will end: %s", error)
        await self._store.close()

    # Inside

    def _claim_alone(self, claim: Claim, *, perhaps_taken: bool = False) -> Verdict:
        verdict = self._alone.claim(replace(claim, limits=self._part(claim.limits)), self._clock.now())
        if isinstance(verdict, Granted):
            self._held[claim.claim_id] = claim
            self._outbox.note(claim)
        elif perhaps_taken:
            self._outbox.give_back(_unserved(claim))
        return verdict

    def _part(self, limits: Limits) -> Limits:
        """What this router enforces when it cannot ask the others."""
        return limits.part(self._routers)

    def _changes(self) -> Changes:
        renew = self._clock.now() >= self._renewed_at + self._config.lease_s / _RENEWALS_PER_LEASE
        return replace(
            self._outbox.take(),
            reserved=dict(self._own),
            renewed=self._held_by_tenant() if renew else {},
            marks=tuple(self._marks.values()) if self._store_is_new else (),
            cursor=self._cursor,
        )

    def _held_by_tenant(self) -> dict[str, tuple[str, ...]]:
        """Claims that the store knows: to renew one that it has not heard of would hide it from the charge."""
        held: dict[str, list[str]] = defaultdict(list)
        for claim in self._held.values():
            if claim.claim_id not in self._outbox.noted:
                held[claim.tenant].append(claim.claim_id)
        return {tenant: tuple(claim_ids) for tenant, claim_ids in held.items()}

    def _hear(self, changes: Changes, shared: Shared, asked_at: float) -> None:
        now = self._clock.now()
        self._outbox.said(changes)
        if changes.renewed:
            self._renewed_at = now
            self._alone.forget_idle(now)
        self._came_back(asked_at, now)
        self._others, self._routers, self._heard_at = shared.reserved, shared.routers, now
        self._cursor = shared.cursor
        for pin in shared.pins:
            # At the earliest: the echo of an own pin must not pass for newer than what was pinned meanwhile.
            self._pins.hear(pin.session_id, pin.worker_id, asked_at - pin.age_s)
        known, self._incarnation = self._incarnation, shared.incarnation
        self._store_is_new = known not in ("", shared.incarnation)
        if self._store_is_new:
            self._tell_all_again()
        else:
            self._marks = dict(shared.marks)

    def _tell_all_again(self) -> None:
        """The store came back empty: drain marks, pins and claims go to it with the next exchange."""
        logger.warning("the store has lost its content; this router puts back what it knows")
        self._cursor = ""
        self._renewed_at = float("-inf")
        for session_id, worker_id in self._pins.newest(self._config.max_pending):
            self._outbox.pin(Pin(session_id, worker_id))

    def _lost(self, error: StoreUnavailable) -> None:
        if self._away_since is None:
            self._away_since = self._clock.now()
            logger.warning("going on without the store: %s", error)
        self._reason = str(error)

    def _came_back(self, asked_at: float, now: float) -> None:
        # Connections overtake each other: what was asked before the loss may be answered after it.
        if self._away_since is not None and asked_at >= self._away_since:
            logger.warning("the store is back after %.1f s", now - self._away_since)
            self._away_since = None
            self._reason = ""
            self._renewed_at = float("-inf")  # leases may have ended while nobody could renew them


def _unserved(claim: Claim) -> Returned:
    return Returned(claim.tenant, claim.claim_id, claim.limits, claim.tokens, unused_requests=1)
