"""A worker: one engine, and the gRPC server through which routers use it.

Owns the worker's state, the one pump over `engine.step()`, and the attempts of all sessions. Knows neither Ray nor
which engine it has; whoever runs it announces it and asks for its health.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence

import grpc

from cluster.attempt_endings import moving_on, refusal
from cluster.attempts import AttemptTable
from cluster.clock import Clock
from cluster.engine import (
    Engine,
    EngineInfo,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    FinishReason,
    Leg,
    Role,
)
from cluster.engine_counters import EngineCounters
from cluster.errors import EngineFailed, InvalidRequest, WorkerLost
from cluster.host_port import host_port
from cluster.membership import WorkerRecord
from cluster.stall_watch import StallWatch
from cluster.stray_tickets import lease_in
from cluster.wire import describe_engine, output_to_wire, request_from_wire, role_to_wire
from cluster.worker_drain import WorkerDrain
from cluster.worker_service import WorkerServer
from cluster.worker_session import Session
from cluster.worker_spec import State, WorkerSpec
from cluster.worker_watch import WatchFeed
from protos.baton.v1 import worker_pb2 as pb

__all__ = ["State", "Worker", "WorkerSpec"]

logger = logging.getLogger(__name__)

_LEGS = {Role.PREFILL: {Leg.PREFILL, Leg.WHOLE}, Role.DECODE: {Leg.DECODE, Leg.WHOLE, Leg.PREFETCH}}
_ENGINE_CALL_S = 10.0
_FLUSH_S = 2.0


class Worker:
    def __init__(self, spec: WorkerSpec, engine: Engine, clock: Clock) -> None:
        self.spec = spec
        self._engine = engine
        self._state, self._reason = State.STARTING, ""
        self._attempts: AttemptTable[Session] = AttemptTable()
        self._sessions: set[Session] = set()
        self._info: EngineInfo | None = None
        self._feed = WatchFeed(self.load, clock, spec.watch_every_s)
        self._stalls = StallWatch(self, engine, self._attempts, spec, clock)
        self._counters = EngineCounters(
            engine, clock, spec.look_every_s, busy=lambda: bool(self._attempts), counted=self._feed.stir
        )
        self._drain = WorkerDrain(self, clock)
        self._server: WorkerServer | None = None
        self._port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._releases: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def epoch(self) -> int:
        return self.spec.epoch

    @property
    def attempts(self) -> AttemptTable[Session]:
        """For inspection."""
        return self._attempts

    @property
    def feed(self) -> WatchFeed:
        """For inspection."""
        return self._feed

    @property
    def record(self) -> WorkerRecord:
        """What to announce, once started."""
        address = host_port(self.spec.advertise_host, self._port)
        return WorkerRecord(self.spec.worker_id, self.spec.role, self.spec.epoch, address)

    async def start(self) -> None:
        """Starts the engine, then serves. Raises `EngineFailed`; leaves nothing behind if it raises."""
        try:
            self._info = await self._engine.start()
            self._server = WorkerServer(self, self._engine, self._feed, self.spec)
            self._port = await self._server.start()
        except BaseException:
            await self.close()
            raise
        self._run(self._pump(), "worker pump")
        self._run(self._stalls.run(), "worker stalls")
        self._run(self._counters.run(), "worker counters")
        self._run(self._follow_blocks(), "worker blocks")
        self._run(self._feed.run(), "worker watch")
        self._run(self._drain.run(), "worker drain")
        self._enter(State.READY)

    async def close(self) -> None:
        """Ends all sessions, the server and the engine. May be called twice."""
        for session in list(self._sessions):
            session.end(grpc.StatusCode.UNAVAILABLE, f"worker {self.spec.worker_id} is closing")
        self._feed.close()
        self._drain.give_up()
        tasks, self._tasks = [*self._tasks, *self._releases], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
        await self._engine.close()

    async def drain(self, deadline_s: float, reason: str = "it is being stopped") -> bool:
        """Its owner's order: takes no new work, waits until attempts and leases are gone and moves at the deadline what
        is still open. False when something was. A drain that was ordered before keeps its deadline if that is earlier.
        """
        self._drain.stop(deadline_s, reason)
        await self._drain.ended.wait()
        return self._drain.clean

    async def drained(self) -> str:
        """Waits until a drain has ended, whoever ordered it; returns why it was. The owner then closes the worker. A
        worker that breaks is never drained."""
        await self._drain.drained.wait()
        return self._drain.reason

    def check_health(self) -> None:
        """Raises `WorkerLost` with the reason when the worker must be replaced."""
        if self._state in (State.FAILED, State.STALLED):
            raise WorkerLost(f"worker {self.spec.worker_id} has {self._state.name.lower()}: {self._reason}")

    def load(self) -> pb.Load:
        """As of the last step; the leases as of the last look at the engine's counters. A dead engine has none."""
        load = EngineLoad() if self._state is State.FAILED else self._engine.load()
        return pb.Load(
            running=load.running,
            waiting=load.waiting,
            queued_prefill_tokens=self._attempts.queued_prefill_tokens,
            kv_usage=load.kv_usage,
            leases=self._counters.last.leases,
        )

    async def describe(self) -> pb.WorkerDescription:
        """Counts anew; what a dead engine counted last, when it cannot."""
        assert self._info is not None, "start() comes first"
        await self._counters.refresh()
        description = describe_engine(self._info, self._counters.last)
        description.worker_id, description.epoch = self.spec.worker_id, self.spec.epoch
        description.role, description.state = role_to_wire(self.spec.role), self._state.value
        description.reason = self._reason
        if self._state is State.DRAINING and (left_s := self._drain.left_s) is not None:
            description.drain_left_s = left_s
        description.load.CopyFrom(self.load())
        for outcome, count in self._attempts.outcomes.items():
            description.counters.attempts_by_outcome[outcome] = count
        return description

    # What sessions ask (`worker_session.SessionHost`) ---------------------------------------------------------------

    def opened(self, session: Session) -> None:
        """A router has one session: where it comes again, the old one is gone, whether or not that is known here."""
        for old in self._sessions:
            if old.router_id == session.router_id:
                old.end(grpc.StatusCode.ABORTED, f"router {session.router_id} has opened another session")
        self._sessions.add(session)

    async def closed(self, session: Session) -> None:
        self._sessions.discard(session)
        await self._abort(self._attempts.owned_by(session))

    async def submit(self, session: Session, submit: pb.Submit) -> None:
        if self._state is State.DRAINING:
            self._attempts.refused()
            return self._tell(session, [moving_on(submit.attempt_id, self._reason)])
        try:
            request = self._accept(submit)
            self._open(request, session)
            self._feed.stir()
        except (InvalidRequest, WorkerLost) as error:
            self._attempts.refused()
            not_ready = isinstance(error, WorkerLost)
            why = FinishReason.MOVED if not_ready else FinishReason.ERROR
            self._tell(session, [refusal(submit.attempt_id, error, why)])
            return
        try:
            await self._engine.submit(request)
        except (InvalidRequest, EngineFailed) as error:
            if self._attempts.end(request.attempt_id, "refused"):
                self._stalls.work_went()
                self._tell(session, [refusal(request.attempt_id, error)])

    async def abort(self, session: Session, attempt_ids: Sequence[str]) -> None:
        await self._abort([a for a in attempt_ids if self._attempts.owner(a) is session])

    async def release(self, lease_id: str) -> None:
        try:
            await self._engine.release(lease_id)
            self._counters.stir()  # an idle engine takes the blocks back when it is asked, not here: a session waits
        except EngineFailed as error:
            logger.warning("lease %s was not released: %s", lease_id, error)

    def order_drain(self, drain: pb.Drain) -> None:
        if drain.undo:
            self._drain.undo(drain.drain_id)
        else:
            self._drain.give(drain.drain_id, drain.deadline_s, drain.reason)

    # What a drain asks (`worker_drain.DrainHost`) --------------------------------------------------------------------

    def draining(self, reason: str) -> None:
        self._enter(State.DRAINING, reason)

    def undrained(self) -> None:
        self._enter(State.READY)

    def open_attempts(self) -> int:
        return len(self._attempts)

    async def open_leases(self) -> int:
        await self._counters.refresh()
        return self._counters.last.leases

    async def move_attempts(self, reason: str) -> None:
        moved: list[str] = []
        for session in list(self._sessions):
            outputs = [moving_on(attempt_id, reason) for attempt_id in self._attempts.owned_by(session)]
            for output in outputs:
                self._attempts.take(output)
            if outputs:
                self._tell(session, outputs)
            moved += [output.attempt_id for output in outputs]
        await self._stop_in_engine(moved)
        await asyncio.gather(*(session.flush(_FLUSH_S) for session in list(self._sessions)))

    # What follows from a stall (`stall_watch.StallHost`) --------------------------------------------------------------

    async def stalled(self, reason: str) -> None:
        """A worker that drains need not be replaced for it, but what it has cannot wait for the deadline."""
        if self._state is State.READY:
            self._enter(State.STALLED, reason)
        elif self._state is State.DRAINING:
            await self.move_attempts(reason)

    def recovered(self) -> None:
        self._enter(State.READY)

    # ----------------------------------------------------------------------------------------------------------------

    def _open(self, request: EngineRequest, session: Session) -> None:
        if request.leg is Leg.PREFETCH:  # computes nothing here, and its pace is that of another engine
            self._attempts.add(request.attempt_id, session, 0, awaited=False)
            return
        # What decode continues was computed elsewhere.
        to_compute = 0 if request.leg is Leg.DECODE else len(request.prompt_token_ids)
        self._attempts.add(request.attempt_id, session, to_compute, pulls=request.leg is Leg.DECODE)
        self._stalls.work_came()

    def _accept(self, submit: pb.Submit) -> EngineRequest:
        if self._state is not State.READY:
            raise WorkerLost(f"worker {self.spec.worker_id} is {self._state.name.lower()} {self._reason}".rstrip())
        request = request_from_wire(submit)
        if request.leg not in _LEGS[self.spec.role]:
            raise InvalidRequest(f"a {self.spec.role.value} worker does not run the {request.leg.value} leg")
        if request.attempt_id in self._attempts:
            raise InvalidRequest(f"attempt {request.attempt_id!r} is open already: an id names one attempt, once")
        return request

    async def _abort(self, attempt_ids: Sequence[str]) -> None:
        ended = self._attempts.end_all(attempt_ids, FinishReason.ABORT.value)
        await self._stop_in_engine(ended)

    async def _stop_in_engine(self, ended: Sequence[str]) -> None:
        """Of attempts that are no longer open."""
        self._stalls.work_went()
        if not ended:
            return
        self._feed.stir()
        try:
            async with asyncio.timeout(_ENGINE_CALL_S):
                await self._engine.abort(ended)
        except (EngineFailed, TimeoutError) as error:
            logger.warning("%d attempts were not aborted: %s", len(ended), error)

    async def _pump(self) -> None:
        while True:
            outputs = await self._engine.step()
            self._counters.stir()
            self._deliver(outputs)
            self._feed.stir()
            self._stalls.stepped()

    async def _follow_blocks(self) -> None:
        while True:
            self._feed.apply(await self._engine.block_changes())

    def _deliver(self, outputs: Sequence[EngineOutput]) -> None:
        messages: dict[Session, list[EngineOutput]] = {}
        for output in outputs:
            session = self._attempts.take(output)
            if session is not None:
                messages.setdefault(session, []).append(output)
            elif lease_id := lease_in(output.ticket):  # it had finished before it heard that it was aborted
                self._let_go(lease_id)
        for session, its_outputs in messages.items():
            self._tell(session, its_outputs)

    def _let_go(self, lease_id: str) -> None:
        release = asyncio.create_task(self.release(lease_id), name=f"release of {lease_id}")
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)

    def _tell(self, session: Session, outputs: Sequence[EngineOutput]) -> None:
        session.put(pb.StepOutputs(outputs=[output_to_wire(output) for output in outputs], load=self.load()))

    def _run(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The engine is gone: every open attempt hears it, and the worker only waits to be replaced."""
        if not isinstance(error, EngineFailed):
            logger.error("the worker broke", exc_info=error)
        self._counters.engine_died()
        self._enter(State.FAILED, str(error) or repr(error))
        for session in self._sessions:
            lost = [refusal(id_, error, FinishReason.LOST) for id_ in self._attempts.owned_by(session)]
            for output in lost:
                self._attempts.take(output)
            if lost:
                self._tell(session, lost)
        self._stalls.work_went()
        self._drain.give_up()

    def _enter(self, state: State, reason: str = "") -> None:
        if self._state is State.FAILED or (self._state, self._reason) == (state, reason):
            return
        self._state, self._reason = state, reason
        self._feed.enter(state.value, reason)
        logger.info("worker %s is %s %s", self.spec.worker_id, state.name.lower(), reason)
