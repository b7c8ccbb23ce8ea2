"""One router's part in what routers share: the mirror of the store, and the claims on quotas that are under way.

Owns the tasks of both. What is claimed and reserved is decided by its callers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cluster.clock import Clock
from cluster.config import Config
from cluster.errors import BatonError, EngineFailed, StoreUnavailable
from cluster.open_store import open_store
from cluster.quota import Claim, Returned, Verdict
from cluster.store_mirror import StoreMirror
from protos.baton.v1 import admin_pb2
from router.task_end import end_tasks

logger = logging.getLogger(__name__)

Answer = Callable[[Verdict | BatonError], None]


class QuotaClaims:
    """Asks the mirror in a task for each claim. Implements `gate.Quota`."""

    def __init__(self, mirror: StoreMirror) -> None:
        self._mirror = mirror
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def ask(self, claim: Claim, answer: Answer) -> None:
        task = asyncio.create_task(self._ask(claim, answer), name=f"quota of {claim.claim_id}")
        self._tasks[claim.claim_id] = task
        task.add_done_callback(lambda done: self._ended(claim.claim_id, done))

    def drop(self, claim_id: str) -> None:
        """The mirror gives back what the store may have granted."""
        if task := self._tasks.get(claim_id):
            task.cancel()

    def give_back(self, returned: Returned) -> None:
        self._mirror.give_back(returned)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, claim: Claim, answer: Answer) -> None:
        try:
            verdict: Verdict | BatonError = await self._mirror.claim(claim)
        except Exception:
            logger.exception("the quota of tenant %s cannot be asked for", claim.tenant)
            verdict = StoreUnavailable(f"the quota of tenant {claim.tenant} cannot be asked for: try again")
        answer(verdict)

    def _ended(self, claim_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[claim_id]
        if not task.cancelled() and (error := task.exception()):
            logger.error("the answer to claim %s could not be applied", claim_id, exc_info=error)


class SharedState:
    """Made by `open_shared_state`; `start` and `close` are called once each. `mirror` answers at once."""

    def __init__(self, mirror: StoreMirror, clock: Clock) -> None:
        self.mirror = mirror
        self.claims = QuotaClaims(mirror)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._joined = False  # others may have heard of this router

    async def start(self) -> None:
        """Hears once what others have said, if the store answers within its deadline; then keeps up. To be closed also
        where it is cancelled."""
        self._joined = True
        await self.mirror.exchange()
        self._task = asyncio.create_task(self.mirror.run(), name="exchange with the store")

    def check(self) -> None:
        """Raises `EngineFailed` when the background task has ended."""
        if self._task is not None and self._task.done():
            raise EngineFailed(f"the router's task to {self._task.get_name()} has ended")

    async def close(self) -> None:
        """Takes back what is reserved, if it was started. After the last request has ended. May be called twice."""
        task, self._task = self._task, None
        joined, self._joined = self._joined, False
        await self.claims.close()
        if task is not None:
            await end_tasks([task])
        if joined:
            await self.mirror.leave()

    def status(self) -> admin_pb2.StoreStatus:
        health = self.mirror.health
        away_s = 0.0 if health.away_since is None else self._clock.now() - health.away_since
        return admin_pb2.StoreStatus(
            degraded=health.degraded,
            degraded_s=away_s,
            reason=health.reason,
            routers=health.routers,
            dropped_writes=health.dropped,
        )


def open_shared_state(config: Config, router_id: str, clock: Clock) -> SharedState:
    """Nothing is connected yet. Raises `ConfigError`: the store's password is unset."""
    store = open_store(config.store, config.name, clock)
    return SharedState(StoreMirror(store, router_id, config.store, clock, config.router.replicas), clock)
