"""The directory of workers in a detached, named Ray actor. Its state is a `MembershipTable` in memory: workers announce
themselves again and again, so a lost actor costs nothing but the time of one announcement.

Every call creates the actor when it is not there, and has a deadline. It must not know Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator

from cluster.continuity import Continuity, View
from cluster.errors import DeadlineExceeded
from cluster.membership import WORKER_TTL_S, Membership, MembershipTable, WorkerRecord
from cluster.named_actor import CALL_S, NamedActor

logger = logging.getLogger(__name__)

ACTOR_NAME = "directory"
_POLL_S = 20.0


class DirectoryActor:
    """Runs inside the actor. For `warm_s` after its start it says that it may not know every worker yet."""

    def __init__(self, warm_s: float) -> None:
        self._incarnation = uuid.uuid4().hex
        self._warm_until = time.monotonic() + warm_s
        self._table = MembershipTable()
        self._withdrawn: list[tuple[str, int]] = []
        self._changed = asyncio.Condition()

    async def announce(self, record: WorkerRecord, ttl_s: float) -> None:
        async with self._changed:
            self._table.announce(record, ttl_s, time.monotonic())
            self._changed.notify_all()

    async def withdraw(self, worker_id: str, epoch: int) -> None:
        async with self._changed:
            self._table.withdraw(worker_id, epoch)
            if self._warming:
                self._withdrawn.append((worker_id, epoch))
            self._changed.notify_all()

    async def watch(self, seen: View | None, timeout_s: float) -> View:
        """Returns once the view differs from `seen`, or after `timeout_s`."""
        give_up = time.monotonic() + timeout_s
        async with self._changed:
            while True:
                now = time.monotonic()
                self._table.expire(now)
                view = self._view()
                if view != seen or now >= give_up:
                    return view
                moments = (give_up, self._table.next_expiry, self._warm_until if self._warming else None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(m for m in moments if m is not None) - now)):
                        await self._changed.wait()

    @property
    def _warming(self) -> bool:
        return time.monotonic() < self._warm_until

    def _view(self) -> View:
        membership, warming = self._table.membership, self._warming
        withdrawn = tuple(self._withdrawn) if warming else ()
        return View(self._incarnation, membership.version, warming, membership.workers, withdrawn)


class RayDirectory:
    """Implements `membership.Directory` for any process that is connected to the Ray cluster."""

    def __init__(self, cluster_name: str, warm_s: float = WORKER_TTL_S) -> None:
        self._actor = NamedActor(ACTOR_NAME, cluster_name, DirectoryActor, warm_s)

    async def announce(self, record: WorkerRecord, ttl_s: float) -> None:
        """Raises `DeadlineExceeded` when the directory cannot be reached."""
        await self._actor.call("announce", record, ttl_s)

    async def withdraw(self, worker_id: str, epoch: int) -> None:
        """Raises `DeadlineExceeded` when the directory cannot be reached."""
        await self._actor.call("withdraw", worker_id, epoch)

    async def watch(self) -> AsyncIterator[Membership]:
        """While the directory is away the last membership holds."""
        continuity, seen = Continuity(), None
        while True:
            try:
                seen = await self._actor.call("watch", seen, _POLL_S, deadline_s=_POLL_S + CALL_S)
            except DeadlineExceeded as error:
                logger.warning("%s; the last known workers stay", error)
                continue
            membership = continuity.update(seen)
            if membership is not None:
                yield membership
