"""The router's connection to the cluster: follows the directory and keeps one link to every worker in it.

Owns every background task of the router. What a request does with a worker is decided in `dispatch` and `pipeline`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from cluster.clock import Clock
from cluster.config import RouterConfig
from cluster.engine import Role
from cluster.errors import BatonError, EngineFailed, NoWorker, WorkerLost, WorkerStalled
from cluster.membership import Directory, Membership, WorkerRecord
from cluster.store import DrainMark
from cluster.tls import PLAIN, Channels
from protos.baton.v1 import worker_pb2
from router.dispatch import Dispatch, DispatchParts
from router.fleet_reports import FleetReports, WorkerReport
from router.seen import Seen
from router.silence import SilenceWatch
from router.task_end import end_tasks
from router.worker_link import WorkerLink
from router.worker_watch import BlockSink, Sinks, Turns, WorkerWatch

logger = logging.getLogger(__name__)

DEADLINE_CHECK_S = 0.25
_SHORTEST_CHECK_S = 0.01
RETRY_S = 0.2
RETRY_LIMIT_S = 2.0
NO_SESSION = "this router has no session with it: `baton status` says why"

_IN_TROUBLE: dict[int, type[WorkerLost]] = {
    worker_pb2.WORKER_STATE_STALLED: WorkerStalled,
    worker_pb2.WORKER_STATE_FAILED: WorkerLost,
}
"""States in which a worker does not go on with what it has."""


@dataclass(slots=True)
class _Member:
    record: WorkerRecord
    task: asyncio.Task[None]
    link: WorkerLink | None = None
    listed: bool = True
    ready: bool = True  # as the worker itself says


class Fleet:
    """`dispatch` is where requests go in; `start` and `close` are called once each, on the loop that serves. `blocks`
    is told which worker holds what, by default the index that places. `channels`: how workers, and the engines behind
    them, are dialled."""

    def __init__(  # noqa: PLR0913  what a router is made of
        self,
        config: RouterConfig,
        directory: Directory,
        clock: Clock,
        router_id: str,
        seed: int,
        parts: DispatchParts,
        blocks: BlockSink | None = None,
        *,
        channels: Channels = PLAIN,
    ) -> None:
        self._config = config
        self._directory = directory
        self._clock = clock
        self._router_id = router_id
        self.channels = channels
        self._members: dict[str, _Member] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._sinks = Sinks(parts.placing.placement.index if blocks is None else blocks, self)
        self._turns = Turns()
        self._drained = parts.drained
        self._wall = parts.wall
        self._drained_before: dict[str, DrainMark] = {}
        self._undone: dict[str, str] = {}  # drains that are over, by workers that have not been told
        self._jitter = random.Random(seed)
        self._events = parts.journal.events
        self.reports = FleetReports(clock.now, parts.wall)
        self._silence = SilenceWatch(config.silent_after_s, 2 * DEADLINE_CHECK_S)
        self.dispatch = Dispatch(config, self._post, clock.now, parts, seed)

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._follow_directory(), name="follow directory"),
            asyncio.create_task(self._watch_deadlines(), name="watch deadlines"),
        ]

    async def close(self) -> None:
        """Fails what is still in flight, then leaves the workers. May be called twice."""
        self.dispatch.fail_all(NoWorker("this router is stopping: try again"))
        await end_tasks(self._tasks)
        self._tasks = []
        await end_tasks(member.task for member in self._members.values())
        self._members.clear()

    def check(self) -> None:
        """Raises `EngineFailed` when a task that runs for the life of the fleet has ended."""
        for task in self._tasks:
            if task.done():
                raise EngineFailed(f"the router's task to {task.get_name()} has ended")

    @property
    def ready(self) -> bool:
        """Whether a request would be served."""
        return self.dispatch.can_take

    @property
    def next_change(self) -> asyncio.Event:
        """Set once a worker comes, leaves or goes."""
        return self._changed

    def role_of(self, worker_id: str) -> Role | None:
        """None: no such worker is known."""
        member = self._members.get(worker_id)
        return None if member is None else member.record.role

    def hear_of_drains(self) -> None:
        """Applies what has changed, and tells the workers. Called a few times a second, and by whoever has just changed
        it."""
        before, self._drained_before = self._drained_before, dict(self._drained())
        for worker_id, member in self._members.items():
            old, new = before.get(worker_id), self._drained_before.get(worker_id)
            if old == new:
                continue
            self._mark(member)
            self._tell()
            if new is not None:
                self._undone.pop(worker_id, None)
                self._events.add(Seen.DRAIN_ORDERED, worker_id, new.reason)
                self._order_drain(member, new)
            elif old is not None:
                self._events.add(Seen.DRAIN_UNDONE, worker_id)
                self.end_drain(worker_id, old.drain_id)

    def end_drain(self, worker_id: str, drain_id: str = "") -> None:
        """Tells the worker that it may take work again, now or with its next session. No id: whatever drain an operator
        ordered."""
        undo = worker_pb2.Drain(drain_id=drain_id, undo=True)
        if self._post(worker_id, worker_pb2.SessionRequest(drain=undo)):
            self._undone.pop(worker_id, None)
        else:
            self._undone.setdefault(worker_id, drain_id)

    async def describe(self, within_s: float | None = None) -> list[WorkerReport]:
        """Asks every worker in the directory at once; takes no longer than `within_s`, by default the worker deadline.
        Of those that are silent it says what they said last."""
        members = list(self._members.values())
        return list(await asyncio.gather(*(self._describe(member, within_s) for member in members)))

    @property
    def worker_ids(self) -> list[str]:
        """Of all that are known, linked or not."""
        return list(self._members)

    @property
    def known(self) -> list[tuple[WorkerRecord, WorkerLink | None]]:
        """Every worker, and the link to it; None: no session with it stands."""
        return [(member.record, member.link) for member in self._members.values()]

    # Membership

    async def _follow_directory(self) -> None:
        while True:
            try:
                async for membership in self._directory.watch():
                    await self._reconcile(membership)
            except Exception:
                # The last known workers stay in use: their links tell whether they live.
                logger.exception("the directory cannot be watched; trying again")
            await self._clock.sleep(RETRY_LIMIT_S)

    async def _reconcile(self, membership: Membership) -> None:
        listed = {record.worker_id: record for record in membership.workers}
        outdated = [member for id_, member in self._members.items() if listed.get(id_, member.record) != member.record]
        await self._dismiss(outdated)
        for worker_id, record in listed.items():
            if worker_id not in self._members:
                task = asyncio.create_task(self._keep_linked(record), name=f"link to {worker_id}")
                self._members[worker_id] = _Member(record, task)
        for worker_id, member in self._members.items():
            member.listed = worker_id in listed
            self._mark(member)
        self._tell()
        await self._dismiss_finished()

    def _mark(self, member: _Member) -> None:
        """A worker off the list, not ready, or drained gets nothing new, but may have streams of ours to finish."""
        worker_id = member.record.worker_id
        self.dispatch.set_ready(worker_id, member.listed and member.ready and worker_id not in self._drained_before)

    def _order_drain(self, member: _Member, mark: DrainMark) -> None:
        """Every router says so, and again with every new session; the worker counts it once."""
        left_s = max(0.0, mark.deadline_unix_s - self._wall())
        drain = worker_pb2.Drain(drain_id=mark.drain_id, deadline_s=left_s, reason=mark.reason)
        self._post(member.record.worker_id, worker_pb2.SessionRequest(drain=drain))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _dismiss_finished(self) -> None:
        await self._dismiss([member for member in self._members.values() if not member.listed and self._idle(member)])

    def _idle(self, member: _Member) -> bool:
        worker = self.dispatch.view.get(member.record.worker_id)
        return worker is None or worker.idle

    async def _dismiss(self, members: list[_Member]) -> None:
        for member in members:
            del self._members[member.record.worker_id]
            self.reports.forget(member.record.worker_id)
            self._undone.pop(member.record.worker_id, None)
        await end_tasks(member.task for member in members)

    # Links

    async def _keep_linked(self, record: WorkerRecord) -> None:
        wait_s = RETRY_S
        while True:
            try:
                await self._link(record)
            except WorkerLost as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("link to %s failed", record.worker_id)
            member = self._members.get(record.worker_id)
            if member is None:
                return  # it was dismissed meanwhile
            wait_s = RETRY_S if member.link is not None else min(2 * wait_s, RETRY_LIMIT_S)
            member.link = None
            await self._clock.sleep(wait_s)

    async def _link(self, record: WorkerRecord) -> None:
        """One session from its first message to its end."""
        link = WorkerLink(
            record, self._router_id, self._config.worker_deadline_s, self._config.silent_after_s, self.channels
        )
        cause: BatonError = WorkerLost(f"worker {record.worker_id} left the cluster")
        joined = False
        try:
            worker = await link.open()
            joined = True
            member = self._members[record.worker_id]
            member.link, member.ready = link, worker.state == worker_pb2.WORKER_STATE_READY
            self.dispatch.worker_up(worker)
            self.reports.joined(worker)
            self._events.joined(record.worker_id, record.role, f"epoch {record.epoch} at {record.address}")
            self._mark(member)
            self._tell()
            if mark := self._drained_before.get(record.worker_id):
                self._order_drain(member, mark)
            elif (undone := self._undone.get(record.worker_id)) is not None:
                self.end_drain(record.worker_id, undone)
            async with self._watching(link):
                await link.serve(lambda step: self._on_step(record.worker_id, step))
        except BatonError as error:
            cause = error
            raise
        finally:
            self._silence.forget(record.worker_id)
            if joined:
                self._events.add(Seen.LEFT, record.worker_id, str(cause))
            self.dispatch.worker_down(record.worker_id, cause)
            self._sinks.blocks.worker_gone(record.worker_id)
            self._tell()
            await link.close()

    def _on_step(self, worker_id: str, step: worker_pb2.StepOutputs) -> None:
        self._heard(worker_id)
        self.dispatch.on_step(worker_id, step)

    def _heard(self, worker_id: str) -> None:
        self._silence.heard(worker_id)
        self.reports.heard(worker_id)

    @asynccontextmanager
    async def _watching(self, link: WorkerLink) -> AsyncIterator[None]:
        """Watches the worker for as long as its session lasts, which alone says whether it is there."""
        worker_id = link.record.worker_id
        deadline_s = max(self._config.worker_deadline_s, self._config.silent_after_s)
        heard = partial(self._heard, worker_id)
        watch = WorkerWatch(worker_id, self._sinks, self._turns, self._clock, deadline_s, heard)
        task = asyncio.create_task(watch.run(link.watch, self._jitter), name=f"watch of {worker_id}")
        try:
            yield
        finally:
            await end_tasks([task])

    # What watches tell (`worker_watch.LoadSink`)

    def load_changed(self, worker_id: str, load: worker_pb2.Load) -> None:
        self.dispatch.on_load(worker_id, load)
        self.reports.load_changed(worker_id, load)

    def state_changed(self, worker_id: str, state: worker_pb2.WorkerState.ValueType, reason: str) -> None:
        if member := self._members.get(worker_id):
            member.ready = state == worker_pb2.WORKER_STATE_READY
            name = worker_pb2.WorkerState.Name(state).removeprefix("WORKER_STATE_").lower()
            logger.info("worker %s is %s %s", worker_id, name, reason)
            if self.reports.state_changed(worker_id, state, reason):
                self._events.add(Seen.of(name), worker_id, reason)
            self._mark(member)
            self._tell()
            if trouble := _IN_TROUBLE.get(state):
                self.dispatch.move_off(worker_id, trouble(f"worker {worker_id} is {name}: {reason}"))

    def _post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        member = self._members.get(worker_id)
        return member is not None and member.link is not None and member.link.send(message)

    async def _describe(self, member: _Member, within_s: float | None) -> WorkerReport:
        link = member.link or WorkerLink(
            member.record, self._router_id, self._config.worker_deadline_s, channels=self.channels
        )
        try:
            return await self.reports.ask(member.record, lambda: link.describe(within_s), link is member.link)
        finally:
            if link is not member.link:
                await link.close()

    # Time

    async def _watch_deadlines(self) -> None:
        looked = self._clock.now()
        while True:
            await self._clock.sleep(self._until_next_check())
            now = self._clock.now()
            try:
                self._give_up_silent(now - looked)
                self.hear_of_drains()
                self.dispatch.on_time()
                await self._dismiss_finished()
            except Exception:
                logger.exception("a deadline could not be applied")
            looked = now

    def _until_next_check(self) -> float:
        retry_at = self.dispatch.next_retry_at
        if retry_at is None:
            return DEADLINE_CHECK_S
        return min(max(retry_at - self._clock.now(), _SHORTEST_CHECK_S), DEADLINE_CHECK_S)

    def _give_up_silent(self, passed_s: float) -> None:
        """Ends their sessions; their links are made anew for as long as they are listed."""
        for worker_id in self._silence.passed(passed_s):
            self._silence.forget(worker_id)
            member = self._members.get(worker_id)
            if member is not None and member.link is not None:
                self._events.add(Seen.SILENT, worker_id, f"nothing heard for {self._config.silent_after_s:g} s")
                silent = f"worker {worker_id} has said nothing for {self._config.silent_after_s:g} s"
                member.link.give_up(WorkerStalled(silent))
