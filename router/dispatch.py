"""Events of the whole fleet to the pipelines of single requests, and their actions to workers and to the frontend.

Synchronous: every entry runs to its end before the next event. It owns which requests and attempts are live, the
counters and the deadlines; it must not know how a message gets to a worker.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.config import RouterConfig
from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PrefillInProgress, Role
from cluster.errors import BatonError, DeadlineExceeded, InvalidRequest, NoWorker, Overloaded, WorkerLost
from cluster.wire import output_from_wire, request_to_wire, role_from_wire
from protos.baton.v1 import admin_pb2, worker_pb2
from router.fleet_view import FleetView
from router.generation import Emission, GenerationRequest, Outcome, Sink
from router.handover_rules import DEFAULT_RULES, HandoverRules
from router.pipeline import (
    Action,
    Cancel,
    Emit,
    End,
    Release,
    RequestPipeline,
    Settle,
    Submit,
    stray_ticket,
)
from router.placement import place

logger = logging.getLogger(__name__)

Post = Callable[[str, worker_pb2.SessionRequest], bool]
"""Sends to a worker without waiting; False when it cannot be reached."""


@dataclass(frozen=True, slots=True)
class _Live:
    pipeline: RequestPipeline
    deadline: float


class Dispatch:
    """`now` gives seconds of a monotonic clock; `seed` makes placement's draws repeatable."""

    def __init__(
        self,
        config: RouterConfig,
        post: Post,
        now: Callable[[], float],
        seed: int,
        rules: HandoverRules = DEFAULT_RULES,
    ) -> None:
        self._config = config
        self._rules = rules
        self._post = post
        self._now = now
        self._draw = random.Random(seed)
        self._sink: Sink | None = None
        self._live: dict[str, _Live] = {}  # in order of arrival, hence of deadline
        self._attempts: dict[str, _Live] = {}
        self._prefill_deadlines: dict[str, float] = {}  # attempt id -> when; in order of submission
        self._emissions: list[Emission] = []
        self._outcomes: Counter[str] = Counter()
        self._disaggregated = 0
        self._whole = 0
        self.view = FleetView()

    def connect(self, sink: Sink) -> None:
        """Where the emissions of all requests go, from now on."""
        self._sink = sink

    # Requests

    @property
    def in_flight(self) -> int:
        return len(self._live)

    def admit(self, requests: int = 1) -> None:
        """Whether so many more requests can be taken now. Raises `Overloaded`, `NoWorker`."""
        if len(self._live) + requests > self._config.max_in_flight:
            self._outcomes["refused"] += 1
            limit = self._config.max_in_flight
            raise Overloaded(f"{len(self._live)} requests are in flight, the limit is {limit}: try again later")
        if not self.view.can_serve:
            self._outcomes["refused"] += 1
            raise NoWorker("no worker is ready: try again in a moment")

    def submit(self, request: GenerationRequest) -> None:
        """Takes the request; every way it can end comes as an emission. Admission is the caller's to ask for first."""
        pipeline = RequestPipeline(request, self._choose, self._follow, self._rules.first_token_from_prefill)
        live = _Live(pipeline, self._now() + self._config.request_deadline_s)
        self._live[request.request_id] = live
        self._perform(live, pipeline.start())
        self._flush()

    def cancel(self, request_ids: Iterable[str], outcome: Outcome = Outcome.CANCELLED) -> None:
        """Nobody waits for these any more. Unknown ids are no error."""
        for request_id in request_ids:
            if live := self._live.get(request_id):
                self._perform(live, live.pipeline.cancel(outcome))
        self._flush()

    def fail_all(self, cause: BatonError) -> None:
        for live in list(self._live.values()):
            self._perform(live, live.pipeline.fail(cause))
        self._flush()

    # Workers

    def worker_up(self, worker: worker_pb2.WorkerDescription) -> None:
        """Raises `InvalidRequest` for a role that is not a pool's."""
        role = role_from_wire(worker.role)
        self.view.add(worker.worker_id, role, worker.source, worker.epoch).report(worker.load)

    def worker_down(self, worker_id: str, cause: BatonError) -> None:
        """The worker is gone with all that it had of ours. Unknown ids are no error."""
        worker = self.view.get(worker_id)
        if worker is None:
            return
        self.view.remove(worker_id)
        for attempt_id in worker.attempts:
            if live := self._attempts.get(attempt_id):
                self._perform(live, live.pipeline.on_worker_lost(worker_id, cause))
        self._flush()

    def on_step(self, worker_id: str, step: worker_pb2.StepOutputs) -> None:
        """One message of a worker: all outputs go to the frontend as one batch."""
        worker = self.view.get(worker_id)
        for wire in step.outputs:
            if worker is not None:
                worker.computed(wire.attempt_id)
            self._on_output(worker_id, _decoded(wire))
        if worker is not None and step.HasField("load"):
            worker.report(step.load)
        self._flush()

    def on_time(self) -> None:
        """Ends what is past its deadline. To be called a few times a second."""
        now = self._now()
        for attempt_id in _due(self._prefill_deadlines, now):
            late = DeadlineExceeded(f"prefill took longer than {self._config.prefill_deadline_s:g} s")
            live = self._attempts[attempt_id]
            self._perform(live, live.pipeline.on_attempt_late(attempt_id, late))
        for live in [live for live in self._live.values() if live.deadline <= now]:
            late = DeadlineExceeded(f"the request took longer than {self._config.request_deadline_s:g} s")
            self._perform(live, live.pipeline.fail(late))
        self._flush()

    # Counts

    def counters(self) -> admin_pb2.RouterCounters:
        return admin_pb2.RouterCounters(
            requests_by_outcome=dict(self._outcomes),
            in_flight=len(self._live),
            disaggregated=self._disaggregated,
            whole=self._whole,
        )

    def check_integrity(self) -> None:
        """Counts live attempts from both sides; raises AssertionError where they differ."""
        reserved = {attempt_id for worker in self.view for attempt_id in worker.attempts}
        assert reserved == set(self._attempts), (reserved, set(self._attempts))
        assert set(self._prefill_deadlines) <= set(self._attempts)
        assert all(live.pipeline.request_id in self._live for live in self._attempts.values())
        assert not self._emissions

    # Inside

    def _choose(self, role: Role, avoid: frozenset[str], prefer: str | None) -> str | None:
        return place(self.view, role, avoid, self._draw, prefer)

    def _follow(self, worker_id: str, request: EngineRequest) -> PrefillInProgress | None:
        worker = self.view.get(worker_id)
        if self._rules.pipelining_from is None or worker is None or not worker.source:
            return None
        if len(request.prompt_token_ids) < self._rules.pipelining_from:
            return None
        return PrefillInProgress(worker.source, worker.epoch, request.attempt_id)

    def _on_output(self, worker_id: str, output: EngineOutput) -> None:
        live = self._attempts.get(output.attempt_id)
        try:
            if live is not None:
                self._perform(live, live.pipeline.on_output(worker_id, output))
            else:
                self._perform(None, stray_ticket(worker_id, output))
        except BatonError as error:
            if live is not None:
                self._perform(live, live.pipeline.fail(error))

    def _perform(self, live: _Live | None, actions: list[Action]) -> None:
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case Emit(emission):
                    if emission.error is not None:
                        logger.warning("request %s failed: %s", emission.request_id, emission.error)
                    self._emissions.append(emission)
                case Submit() as submit if live is not None:
                    queue.extend(self._submit(live, submit))
                case Settle(worker_id, attempt_id):
                    self._settle(worker_id, attempt_id)
                case Cancel(worker_id, attempt_id):
                    self._post(worker_id, worker_pb2.SessionRequest(abort=worker_pb2.Abort(attempt_ids=[attempt_id])))
                case Release(worker_id, lease_id):
                    self._post(worker_id, worker_pb2.SessionRequest(release=worker_pb2.ReleaseLease(lease_id=lease_id)))
                case End(outcome) if live is not None:
                    self._end(live.pipeline, outcome)

    def _submit(self, live: _Live, submit: Submit) -> list[Action]:
        request = submit.request
        self._attempts[request.attempt_id] = live
        if worker := self.view.get(submit.worker_id):
            computes = request.leg in (Leg.PREFILL, Leg.WHOLE)
            worker.reserve(request.attempt_id, len(request.prompt_token_ids) if computes else 0)
        if request.leg is Leg.PREFILL:
            self._prefill_deadlines[request.attempt_id] = self._now() + self._config.prefill_deadline_s
        if self._post(submit.worker_id, worker_pb2.SessionRequest(submit=request_to_wire(request))):
            return []
        return live.pipeline.on_worker_lost(
            submit.worker_id, WorkerLost(f"worker {submit.worker_id} cannot be reached")
        )

    def _settle(self, worker_id: str, attempt_id: str) -> None:
        self._attempts.pop(attempt_id, None)
        self._prefill_deadlines.pop(attempt_id, None)
        if worker := self.view.get(worker_id):
            worker.settle(attempt_id)

    def _end(self, pipeline: RequestPipeline, outcome: Outcome) -> None:
        del self._live[pipeline.request_id]
        self._outcomes[outcome.value] += 1
        if pipeline.handed_over:
            self._disaggregated += 1
        elif outcome is Outcome.COMPLETED:
            self._whole += 1

    def _flush(self) -> None:
        if self._emissions and self._sink is not None:
            batch, self._emissions = self._emissions, []
            self._sink.deliver(batch)


def _decoded(wire: worker_pb2.Output) -> EngineOutput:
    try:
        return output_from_wire(wire)
    except InvalidRequest as error:
        return EngineOutput(wire.attempt_id, [], finish_reason=FinishReason.ERROR, error=str(error))


def _due(deadlines: dict[str, float], now: float) -> list[str]:
    """Ids whose time has come; `deadlines` are in their own order, so this reads no further than it must."""
    due = []
    for key, deadline in deadlines.items():
        if deadline > now:
            break
        due.append(key)
    return due
