"""Events of the whole fleet to the pipelines of single requests, and their actions to workers and to the frontend.

Synchronous: every entry runs to its end before the next event. It owns the live requests, the counters and what follows
from a deadline; it must not know how a message gets to a worker.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cluster.config import RouterConfig
from cluster.config_admission import AdmissionConfig
from cluster.engine import EngineOutput, EngineRequest, Leg, PrefillInProgress, Role
from cluster.errors import BatonError, DeadlineExceeded, EngineFailed, NoWorker, RetryLater, WorkerLost, WorkerStalled
from cluster.store import DrainMark
from cluster.wire import request_to_wire, role_from_wire
from protos.baton.v1 import admin_pb2, worker_pb2
from router.actions import Action, Cancel, Emit, End, Ending, Later, Release, Settle, Submit
from router.admission_events import Admit, Refuse
from router.caller import Caller
from router.fleet_view import FleetView, WorkerView
from router.gate import Gate, Ruling
from router.generation import Emission, GenerationRequest, Outcome, Sink
from router.handover_rules import DEFAULT_RULES, HandoverRules
from router.live_requests import LiveRequest, LiveRequests
from router.pipeline import GIVEN_UP, RequestPipeline
from router.pipeline_questions import PipelineRules, Questions
from router.placing import Placing
from router.recovery import RecoveryRules
from router.request_counts import RequestCounts
from router.request_journal import RequestJournal
from router.retry_budget import RetryBudget
from router.strays import stray_ticket
from router.worker_output import Unreadable, decoded

logger = logging.getLogger(__name__)

_LOOK_S = 0.25  # for a worker that has begun, or may be back
Post = Callable[[str, worker_pb2.SessionRequest], bool]
"""Sends to a worker without waiting; False when it cannot be reached."""


@dataclass(frozen=True, slots=True)
class DispatchParts:
    """What a dispatch decides by and writes to. Without a `gate` the default admission applies, and nobody has limits.
    `drained`: workers that get nothing new because an operator wants it so; answers from memory. `wall`: seconds since
    1970. `may_begin`: such a pool without workers gets one for a request that waits."""

    placing: Placing
    journal: RequestJournal
    rules: HandoverRules = DEFAULT_RULES
    gate: Gate | None = None
    drained: Callable[[], Mapping[str, DrainMark]] = dict
    may_begin: Callable[[Role], bool] = lambda _: False
    wall: Callable[[], float] = time.time


class Dispatch:
    """`now` gives seconds of a monotonic clock; `seed` spreads retries."""

    def __init__(
        self,
        config: RouterConfig,
        post: Post,
        now: Callable[[], float],
        parts: DispatchParts,
        seed: int = 0,
    ) -> None:
        self._config = config
        self._handover = parts.rules
        self.rules = PipelineRules(parts.rules.first_token_from_prefill, RecoveryRules.of(config))
        self._post = post
        self._now = now
        self.placing = parts.placing
        self._journal = parts.journal
        self._sink: Sink | None = None
        self._live = LiveRequests()
        self._retries = RetryBudget(config.retry_share, config.retry_floor_per_s, seed)
        self._emissions: list[Emission] = []
        self.counts = RequestCounts()
        self._gate = parts.gate or Gate(AdmissionConfig(), config.max_in_flight, now)
        self._decided: deque[Ruling] = deque()  # not carried out yet: one may lead to the next
        self._may_begin = parts.may_begin
        # One worker of these pools is enough for any request.
        self._serving = tuple(Role) if config.prefill_may_decode else (Role.DECODE,)
        self.view = FleetView()
        self._was_ready: dict[Role, float] = {}  # when a worker of the pool was last taken out

    def connect(self, sink: Sink) -> None:
        """Where the emissions of all requests go, from now on."""
        self._sink = sink

    # Requests

    @property
    def in_flight(self) -> int:
        return len(self._live)

    @property
    def _can_serve(self) -> bool:
        return self.view.has_any(self._serving)

    @property
    def can_take(self) -> bool:
        """Whether a request would be served, now or once a worker has begun for it."""
        return self._can_serve or any(map(self._may_begin, self._serving))

    def waiting_prompts(self) -> list[int]:
        """Tokens of each prompt that no worker has."""
        return [live.pipeline.prompt_tokens for live in self._live if live.waits]

    def admit(self, requests: int = 1, caller: Caller | None = None) -> None:
        """A quick look at whether so many more requests make sense now; `submit` decides.

        Raises `InvalidRequest` for a class that the caller may not use, `Overloaded`, `NoWorker`.
        """
        try:
            self._gate.check(caller or Caller(), requests)
            if not self.can_take:
                raise NoWorker("no worker is ready: try again in a moment")
        except (RetryLater, NoWorker) as error:
            self.counts.refused(error)
            raise

    def submit(self, request: GenerationRequest) -> None:
        """Takes the request, which may have to wait; every way it can end comes as an emission."""
        choices = self.placing.choices(request)
        questions = Questions(choices.choose, self._follow, choices.whole_pays, self._retry, self._patience)
        pipeline = RequestPipeline(request, questions, self.rules)
        deadline = request.caller.until(self._now(), self._config.request_deadline_s)
        live = LiveRequest(pipeline, choices, deadline, request.caller)
        self._live.begin(live)
        self._journal.begin(request)
        self.placing.arrivals.came(pipeline.prompt_tokens)
        self._gate.hold(not self._can_serve and self.can_take)
        self._decide(self._gate.submit(request, live.deadline, self._decide, choices.cached_tokens))

    def cancel(self, request_ids: Iterable[str], outcome: Outcome = Outcome.CANCELLED) -> None:
        """Nobody waits for these any more. Unknown ids are no error."""
        for request_id in request_ids:
            if live := self._live.get(request_id):
                self._perform(live, live.pipeline.cancel(outcome))
        self._flush()

    def leave(self, caller: Caller, cause: BatonError) -> None:
        """Nobody waits for what this caller still has running, and the frontend does not know that yet."""
        for live in [live for live in self._live if live.caller is caller]:
            failed = Emission(live.request_id, [], error=cause)
            self._journal.emitted(failed)
            self._perform(live, live.pipeline.cancel(Outcome.CANCELLED))
            self._emissions.append(failed)
        self._flush()

    def fail_all(self, cause: BatonError) -> None:
        for live in self._live:
            self._perform(live, live.pipeline.fail(cause))
        self._flush()

    # Workers

    def worker_up(self, worker: worker_pb2.WorkerDescription) -> None:
        """Raises `InvalidRequest` for a role that is not a pool's."""
        role = role_from_wire(worker.role)
        self.view.add(worker.worker_id, role, worker.source, worker.epoch, worker.num_blocks)
        self.placing.worker_up(worker)

    def worker_down(self, worker_id: str, cause: BatonError) -> None:
        """The worker is gone with all that it had of ours. Unknown ids are no error."""
        worker = self.view.get(worker_id)
        if worker is None:
            return
        self._note_ready(worker.role)
        self.view.remove(worker_id)
        self.placing.worker_gone(worker_id)
        self._move_off(worker, cause)

    def move_off(self, worker_id: str, cause: BatonError) -> None:
        """What the worker has of ours goes to others at once; the worker stays. To be called once it is not ready.
        Unknown ids are no error."""
        if worker := self.view.get(worker_id):
            self._move_off(worker, cause)

    def set_ready(self, worker_id: str, ready: bool) -> None:
        """Whether it gets new attempts; those that it has go on. Unknown ids are no error."""
        if worker := self.view.get(worker_id):
            self._note_ready(worker.role)
            worker.leaving = not ready
            self.placing.set_ready(worker_id, ready)

    def on_load(self, worker_id: str, load: worker_pb2.Load) -> None:
        """Unknown ids are no error."""
        if worker := self.view.get(worker_id):
            self.placing.report(worker_id, load, worker.num_blocks)

    def on_step(self, worker_id: str, step: worker_pb2.StepOutputs) -> None:
        """One message of a worker: all outputs go to the frontend as one batch."""
        for wire in step.outputs:
            match decoded(wire):
                case Unreadable(attempt_id, reason):
                    self._on_unreadable(worker_id, attempt_id, reason)
                case output:
                    if output.finish_reason not in GIVEN_UP:
                        self.placing.answered(output.attempt_id, len(output.token_ids), output.origin)
                    self._on_output(worker_id, output)
        if step.HasField("load"):
            self.on_load(worker_id, step.load)
        self._flush()

    def on_time(self) -> None:
        """Ends what is past its deadline, and lets in whom time has moved up. To be called a few times a second."""
        self._gate.hold(not self._can_serve and self.can_take)
        self._decide(self._gate.on_time(self.placing.tokens_within))
        now = self._now()
        for attempt_id, live in self._live.late(now):
            late = DeadlineExceeded(f"prefill took longer than {self._config.prefill_deadline_s:g} s")
            self._perform(live, live.pipeline.on_attempt_late(attempt_id, late))
        for live in self._live.take_retries(now):
            self._perform(live, live.pipeline.on_retry())
        for live in self._live.overdue(now):
            late = DeadlineExceeded(f"no end in {self._config.request_deadline_s:g} s, or in what its client allowed")
            self._perform(live, live.pipeline.fail(late))
        self.placing.on_time()
        self._flush()

    @property
    def next_retry_at(self) -> float | None:
        """Clock time of the first retry that waits for `on_time`; None: none does."""
        return self._live.next_retry_at

    # Counts

    def counters(self) -> admin_pb2.RouterCounters:
        return admin_pb2.RouterCounters(
            requests_by_outcome=dict(self.counts.outcomes),
            in_flight=len(self._live),
            disaggregated=self.counts.disaggregated,
            whole=self.counts.whole,
            queued=self._gate.occupancy.queued_requests,
            queued_tokens=self._gate.occupancy.queued_tokens,
            recoveries=dict(self.counts.recoveries),
            retries_refused=self._retries.refused,
            slow_workers=self.placing.slow_workers,
        )

    def check_integrity(self) -> None:
        """Counts live requests and attempts from both sides; raises AssertionError where they differ."""
        reserved = {attempt_id for worker in self.view for attempt_id in worker.attempts}
        self._live.check_integrity(reserved)
        self._gate.check_integrity(len(self._live) - self._live.started, self._live.started)
        self.placing.check_integrity(reserved)
        assert not self._decided
        assert not self._emissions

    # Inside

    def _decide(self, decisions: list[Ruling]) -> None:
        """What the gate has decided, now or in answer to an earlier question."""
        self._decided.extend(decisions)
        self._flush()

    def _carry_out(self, decision: Ruling) -> None:
        live = self._live.get(decision.request_id)
        if live is None:
            return  # it ended between the decision and now; the gate has heard of that
        match decision:
            case Admit():
                live.started = True
                self._retries.came(self._now())
                self._journal.admitted(live.request_id)
                self._perform(live, live.pipeline.start())
            case Refuse(request_id, error):
                self._live.end(request_id)
                self.counts.refused(error)
                live.caller.hear(error)
                refused = Emission(request_id, [], error=error)
                self._journal.emitted(refused)
                self._emissions.append(refused)
                self._journal.end(request_id, Outcome.REFUSED)

    def _follow(self, worker_id: str, request: EngineRequest) -> PrefillInProgress | None:
        return self._handover.follow(self.view.get(worker_id), request)

    def _retry(self, errors: int) -> float | None:
        return self._retries.take(errors, self._now())

    def _patience(self, roles: Iterable[Role], begun: bool) -> float | None:
        empty = [role for role in roles if not self.view.ready(role)]
        comes = any(self._may_begin(role) or (begun and self._may_return(role)) for role in empty)
        return _LOOK_S if comes else None

    def _may_return(self, role: Role) -> bool:
        """A worker is as quickly back as it was lost, where it or this router only stood still."""
        taken_out = self._was_ready.get(role)
        return taken_out is not None and self._now() - taken_out < self._config.worker_deadline_s

    def _note_ready(self, role: Role) -> None:
        """To be called before one of the pool is taken out."""
        if self.view.ready(role):
            self._was_ready[role] = self._now()

    def _move_off(self, worker: WorkerView, cause: BatonError) -> None:
        ending = Ending.STALLED if isinstance(cause, WorkerStalled) else Ending.LOST
        for attempt_id in tuple(worker.attempts):
            if live := self._live.of_attempt(attempt_id):
                self._perform(live, live.pipeline.on_worker_lost(worker.worker_id, cause, ending))
        self._flush()

    def _on_output(self, worker_id: str, output: EngineOutput) -> None:
        live = self._live.of_attempt(output.attempt_id)
        if live is not None and output.rungs:
            self._journal.moved(live.request_id, output)
        if live is not None:
            self._perform(live, live.pipeline.on_output(worker_id, output))
        else:
            self._perform(None, stray_ticket(worker_id, output))

    def _on_unreadable(self, worker_id: str, attempt_id: str, reason: str) -> None:
        logger.warning("worker %s, attempt %s: an answer that makes no sense: %s", worker_id, attempt_id, reason)
        if live := self._live.of_attempt(attempt_id):
            cause = EngineFailed(f"worker {worker_id} gave an answer that makes no sense: {reason}")
            self._perform(live, live.pipeline.on_unreadable(attempt_id, cause))

    def _perform(self, live: LiveRequest | None, actions: list[Action]) -> None:
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case Emit(emission):
                    self._emit(live, emission)
                case Submit() as submit if live is not None:
                    queue.extend(self._submit(live, submit))
                case Settle() as settle if live is not None:
                    self._settle(live, settle)
                case Later(delay_s) if live is not None:
                    self._live.retry_at(live.request_id, self._now() + delay_s)
                case Cancel(worker_id, attempt_id):
                    self._post(worker_id, worker_pb2.SessionRequest(abort=worker_pb2.Abort(attempt_ids=[attempt_id])))
                case Release(worker_id, lease_id):
                    self._post(worker_id, worker_pb2.SessionRequest(release=worker_pb2.ReleaseLease(lease_id=lease_id)))
                case End(outcome) if live is not None:
                    self._end(live.pipeline, outcome)

    def _emit(self, live: LiveRequest | None, emission: Emission) -> None:
        if emission.error is not None:
            logger.warning("request %s failed: %s", emission.request_id, emission.error)
            if live is not None:
                live.caller.hear(emission.error)
        self._journal.emitted(emission)
        self._emissions.append(emission)
        if live is not None and not live.answered:
            live.answered = True
            self._decided.extend(self._gate.started(emission.request_id))

    def _submit(self, live: LiveRequest, submit: Submit) -> list[Action]:
        request = submit.request
        late_at = self._now() + self._config.prefill_deadline_s if request.leg is Leg.PREFILL else None
        self._live.submitted(request.attempt_id, live, late_at)
        self._reserve(live, submit)
        if self._post(submit.worker_id, worker_pb2.SessionRequest(submit=request_to_wire(request))):
            return []
        unreachable = WorkerLost(f"worker {submit.worker_id} cannot be reached")
        return live.pipeline.on_worker_lost(submit.worker_id, unreachable, Ending.MOVED)

    def _reserve(self, live: LiveRequest, submit: Submit) -> None:
        request, request_id = submit.request, live.request_id
        decision = live.choices.made(request.leg, submit.worker_id)
        self._journal.decided(request_id, decision, self.placing.placement.output_tokens(live.choices.demand))
        self._journal.submitted(request_id, request)
        if worker := self.view.get(submit.worker_id):
            worker.attempts.add(request.attempt_id)
            self.placing.take(request, live.choices, decision)

    def _settle(self, live: LiveRequest, settle: Settle) -> None:
        self._live.settled(settle.attempt_id)
        self.placing.settle(settle.attempt_id)
        if settle.blamed:
            self.placing.failed(settle.worker_id, live.request_id)
        elif settle.ending is Ending.COMPLETED:
            self.placing.worked(settle.worker_id)
        self._journal.settled(live.request_id, settle)
        self.counts.settled(settle)
        if worker := self.view.get(settle.worker_id):
            worker.attempts.discard(settle.attempt_id)

    def _end(self, pipeline: RequestPipeline, outcome: Outcome) -> None:
        self._live.end(pipeline.request_id)
        self.counts.ended(outcome, pipeline.handed_over)
        self._journal.end(pipeline.request_id, outcome)
        self._decided.extend(self._gate.leave(pipeline.request_id, pipeline.computed_tokens))

    def _flush(self) -> None:
        while self._decided:
            self._carry_out(self._decided.popleft())
        if self._emissions and self._sink is not None:
            batch, self._emissions = self._emissions, []
            self._sink.deliver(batch)
