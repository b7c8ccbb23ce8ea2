"""The way of one request over the fleet, as a state machine: an event in, actions out, no I/O and no clock.

One attempt is live at a time; beside a prefill there may be a prefetch of its blocks on the decode worker to be, which
helps or does not, and whose failure changes nothing. Arrival, hand-over and every failure go through `_advance`, the
only place that decides what is tried next. It must not know how workers are reached, nor how one is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, Role, Sampling
from cluster.errors import BatonError, EngineFailed, NoWorker, RetriesSpent, WorkerLost
from router.actions import Action, Cancel, Emit, End, Ending, Later, Release, Settle, Submit
from router.generation import Emission, GenerationRequest, Outcome
from router.pipeline_questions import DEFAULT_PIPELINE_RULES, PipelineRules, Questions
from router.recovery import Recovery
from router.rungs import Rung, first_rungs, next_rungs
from router.sampling_state import may_change_worker, prefill_may_sample
from router.strays import lease_of, stray_ticket

GIVEN_UP = frozenset({FinishReason.ERROR, FinishReason.ABORT, FinishReason.MOVED, FinishReason.LOST})
"""The worker ended the attempt before its time."""


@dataclass(slots=True)
class _Attempt:
    attempt_id: str
    leg: Leg
    worker_id: str
    answered: bool = False

    @property
    def may_lack_its_ticket(self) -> bool:
        """What has gone wrong may be the hand-over and nothing else: the prompt can be computed at once."""
        return self.leg is Leg.DECODE and not self.answered


@dataclass(slots=True)
class _Prefetch:
    """`live`: not settled yet. One that has landed is kept for its worker, which has the blocks."""

    attempt_id: str
    worker_id: str
    live: bool = True


@dataclass(frozen=True, slots=True)
class _Handover:
    """Blocks of the finished prompt that wait at a prefill worker. Without a lease id nobody but their reader can end
    their wait."""

    ticket: bytes
    lease_id: str
    worker_id: str


class RequestPipeline:
    """One request. Tickets in outputs can be read. After `End` every event is answered with at most a `Release` for a
    late ticket."""

    def __init__(
        self, request: GenerationRequest, ask: Questions, rules: PipelineRules = DEFAULT_PIPELINE_RULES
    ) -> None:
        self._request = request
        self._ask = ask
        self._rules = rules.recovery
        self._seeding = rules.first_token_from_prefill and prefill_may_sample(request.facts)
        self._attempt: _Attempt | None = None
        self._attempts = 0
        self._prefilled = False
        self._handover: _Handover | None = None
        self._prefetch: _Prefetch | None = None
        self._recovery = Recovery(rules.recovery)
        self._waits: BatonError | None = None  # for its retry, because of this
        self._emitted: list[int] = []
        self._cached_tokens: int | None = None
        self._ended = False
        self.handed_over = False
        """Whether a decode worker answered with the ticket of a prefill worker."""

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def waits(self) -> bool:
        """Whether it has no attempt until `on_retry`."""
        return self._waits is not None

    @property
    def remaining(self) -> int:
        return self._request.sampling.max_tokens - len(self._emitted)

    @property
    def prompt_tokens(self) -> int:
        return len(self._request.prompt_token_ids)

    @property
    def computed_tokens(self) -> int:
        """What the fleet was made to compute for it: its prompt less what was cached, once, and its output."""
        if not self._attempts:
            return 0
        return len(self._request.prompt_token_ids) - (self._cached_tokens or 0) + len(self._emitted)

    # Events

    def start(self) -> list[Action]:
        return self._advance(NoWorker("no worker is ready to take the request: try again in a moment"))

    def on_output(self, worker_id: str, output: EngineOutput) -> list[Action]:
        if self._prefetch is not None and self._prefetch.attempt_id == output.attempt_id:
            return self._on_prefetched(self._prefetch, output)
        attempt = self._attempt
        if attempt is None or attempt.attempt_id != output.attempt_id:
            return stray_ticket(worker_id, output)
        if output.finish_reason in GIVEN_UP:
            return stray_ticket(worker_id, output) + self._recover(*_given_up(worker_id, output))
        if attempt.leg is Leg.PREFILL:
            return self._on_prefilled(attempt, output)
        return self._on_tokens(attempt, output)

    def on_worker_lost(self, worker_id: str, cause: BatonError, ending: Ending = Ending.LOST) -> list[Action]:
        """What it has of the request goes elsewhere. `ending`: what has become of it there; a stalled worker
        may still hear that it is to stop."""
        there = ending is Ending.STALLED
        actions: list[Action] = []
        if self._prefetch is not None and self._prefetch.worker_id == worker_id:
            actions += self._drop_prefetch(cancel=there)
        attempt = self._attempt
        if attempt is None or attempt.worker_id != worker_id:
            return actions
        return actions + self._recover(ending, cause, cancel=there)

    def on_attempt_late(self, attempt_id: str, cause: BatonError) -> list[Action]:
        """The attempt had its time; another one is made."""
        return self._stop(attempt_id, Ending.LATE, cause)

    def on_unreadable(self, attempt_id: str, cause: BatonError) -> list[Action]:
        """Nothing can be made of what its worker says, who may still be at it; another one is made."""
        if self._prefetch is not None and self._prefetch.attempt_id == attempt_id:
            return self._drop_prefetch()
        return self._stop(attempt_id, Ending.FAILED, cause)

    def on_retry(self) -> list[Action]:
        """The wait of a `Later` is over."""
        cause, self._waits = self._waits, None
        return [] if cause is None else self._advance(cause)

    def fail(self, cause: BatonError) -> list[Action]:
        """Ends the request with an error to the client."""
        if self._ended:
            return []
        return [*self._leave(Ending.CANCELLED, str(cause), cancel=True), *self._failure(cause)]

    def cancel(self, outcome: Outcome) -> list[Action]:
        """Nobody listens any more: ends the request without an emission."""
        if self._ended:
            return []
        ending = Ending.COMPLETED if outcome is Outcome.COMPLETED else Ending.CANCELLED
        return [*self._leave(ending, cancel=True), *self._end(outcome)]

    # Progress

    def _on_prefilled(self, attempt: _Attempt, output: EngineOutput) -> list[Action]:
        if output.finish_reason is None:
            return []
        if self._seeding and not output.token_ids:
            cause = EngineFailed(f"worker {attempt.worker_id} finished a prompt without a token")
            return stray_ticket(attempt.worker_id, output) + self._recover(Ending.FAILED, cause)
        self._note_origin(output)
        self._prefilled = True
        actions = self._leave()
        if output.ticket:
            self._handover = _Handover(output.ticket, lease_of(output.ticket), attempt.worker_id)
        if not self._seeding:
            return actions + self._advance(_no_decode())
        if output.finish_reason is not FinishReason.LENGTH:
            return [*actions, *self._drop_handover(), self._emit(output), *self._end(Outcome.COMPLETED)]
        # The hand-over starts before the client is served: both happen in the same turn of the loop.
        first = self._emit(replace(output, finish_reason=None, stop_reason=None))
        return [*actions, first, *self._advance(_no_decode())]

    def _on_prefetched(self, prefetch: _Prefetch, output: EngineOutput) -> list[Action]:
        if output.finish_reason is None or not prefetch.live:
            return []
        prefetch.live = False
        if output.finish_reason not in GIVEN_UP:
            return [Settle(prefetch.worker_id, prefetch.attempt_id, Leg.PREFETCH)]
        self._prefetch = None
        return [Settle(prefetch.worker_id, prefetch.attempt_id, Leg.PREFETCH, Ending.FAILED, output.error)]

    def _on_tokens(self, attempt: _Attempt, output: EngineOutput) -> list[Action]:
        done: list[Action] = []
        if not attempt.answered:
            attempt.answered = True
            done = self._drop_prefetch()
            self.handed_over |= attempt.leg is Leg.DECODE
            self._handover = None  # its reader completes the lease
            self._note_origin(output)
        emit = self._emit(output)
        if output.finish_reason is None:
            return [*done, emit]
        return [*done, *self._leave(), emit, *self._end(Outcome.COMPLETED)]

    def _note_origin(self, output: EngineOutput) -> None:
        if self._cached_tokens is None and output.origin is not None:
            self._cached_tokens = output.origin.cached_tokens

    def _emit(self, output: EngineOutput) -> Emit:
        first = not self._emitted
        self._emitted.extend(output.token_ids)
        emission = Emission(
            request_id=self.request_id,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
            cached_tokens=self._cached_tokens if first else None,
        )
        return Emit(emission)

    # Recovery

    def _stop(self, attempt_id: str, ending: Ending, cause: BatonError) -> list[Action]:
        attempt = self._attempt
        if attempt is None or attempt.attempt_id != attempt_id:
            return []
        return self._recover(ending, cause, cancel=True)

    def _recover(self, ending: Ending, cause: BatonError, *, cancel: bool = False) -> list[Action]:
        """The live attempt has come to such an end."""
        attempt = self._attempt
        assert attempt is not None
        errs = ending in (Ending.FAILED, Ending.LATE)
        blamed = errs and not attempt.may_lack_its_ticket
        progressed = attempt.answered and bool(self._emitted)
        self._recovery.ended(ending, attempt.worker_id, cause, progressed=progressed, blamed=blamed)
        actions = self._leave(ending, str(cause), cancel=cancel, blamed=blamed)
        enough = cause if self._bound else self._recovery.enough(cause)
        if enough is not None:
            return actions + self._failure(enough)
        return actions + (self._retry(ending, cause) if blamed else self._advance(cause))

    @property
    def _bound(self) -> bool:
        """To the worker that sampled its tokens."""
        return bool(self._emitted) and not may_change_worker(self._request.facts)

    def _retry(self, ending: Ending, cause: BatonError) -> list[Action]:
        """After an error, which the next worker may well answer too: not at once, and not without limit. Who was late
        has waited enough."""
        wait_s = self._ask.retry(self._recovery.failed)
        if wait_s is None:
            first = self._recovery.first_cause(cause)
            return self._failure(RetriesSpent(f"{first} (not tried again: too many requests fail at the moment)"))
        if ending is Ending.LATE:
            return self._advance(cause)
        self._waits = cause
        return [*self._drop_prefetch(), Later(wait_s)]

    def _advance(self, cause: BatonError) -> list[Action]:
        """Tries what comes next; `cause` is what the client hears when nothing is left."""
        asked: set[Role] = set()
        for avoid in self._recovery.avoid:
            for leg, role in self._rungs(avoid):
                asked.add(role)
                has_blocks = self._prefetch.worker_id if self._prefetch is not None and role is Role.DECODE else None
                worker_id = self._ask.choose(leg, role, avoid, has_blocks)
                if worker_id is not None:
                    return self._submit(leg, worker_id, avoid)
        wait_s = self._ask.patience(asked, self._attempts > 0)
        if wait_s is None:
            return self._failure(cause)
        self._waits = cause  # a worker may start for longer than blocks wait for a reader
        return [*self._drop_handover(), *self._drop_prefetch(), Later(wait_s)]

    def _rungs(self, avoid: frozenset[str]) -> tuple[Rung, ...]:
        may_decode = self._rules.prefill_may_decode
        if self._handover is not None or self._prefilled or self._emitted:
            return next_rungs(self._handover is not None, self.remaining, may_decode)
        return first_rungs(self._request, lambda: self._ask.whole_pays(avoid), may_decode)

    def _submit(self, leg: Leg, worker_id: str, avoid: frozenset[str]) -> list[Action]:
        dropped = self._drop_handover() if leg is not Leg.DECODE else []
        if self._prefetch is not None and (leg, worker_id) != (Leg.DECODE, self._prefetch.worker_id):
            dropped += self._drop_prefetch()
        self._attempts += 1
        attempt_id = f"{self.request_id}/{leg.value}{self._attempts}"
        self._attempt = _Attempt(attempt_id, leg, worker_id)
        request = EngineRequest(
            attempt_id=attempt_id,
            leg=leg,
            prompt_token_ids=[*self._request.prompt_token_ids, *self._emitted],
            sampling=self._sampling(leg),
            engine_params=self._request.engine_params,
            ticket=self._handover.ticket if self._handover is not None else b"",
            cache_salt=self._request.cache_salt,
            priority=self._request.priority,
            trace_headers=self._request.headers_for(attempt_id),
            after_attempt_id=self._prefetch.attempt_id if self._prefetch is not None and self._prefetch.live else "",
        )
        return [*dropped, Submit(worker_id, request), *self._submit_prefetch(worker_id, request, avoid)]

    def _submit_prefetch(self, worker_id: str, request: EngineRequest, avoid: frozenset[str]) -> list[Action]:
        """Beside a prefill: its blocks go to the decode worker of today, chunk by chunk."""
        follow = self._ask.follow(worker_id, request) if request.leg is Leg.PREFILL else None
        decode = self._ask.choose(Leg.PREFETCH, Role.DECODE, avoid, None) if follow is not None else None
        if decode is None:
            return []
        self._prefetch = _Prefetch(f"{self.request_id}/{Leg.PREFETCH.value}{self._attempts}", decode)
        prefetch = EngineRequest(
            attempt_id=self._prefetch.attempt_id,
            leg=Leg.PREFETCH,
            prompt_token_ids=request.prompt_token_ids,
            sampling=Sampling(max_tokens=1),
            cache_salt=request.cache_salt,
            priority=request.priority,
            trace_headers=self._request.headers_for(self._prefetch.attempt_id),
            follow=follow,
        )
        return [Submit(decode, prefetch)]

    def _sampling(self, leg: Leg) -> Sampling:
        sampling = self._request.sampling
        if leg is not Leg.PREFILL:
            return replace(sampling, max_tokens=self.remaining)
        return replace(sampling, max_tokens=1, logprobs=sampling.logprobs if self._seeding else None)

    def _leave(
        self, ending: Ending = Ending.COMPLETED, reason: str = "", *, cancel: bool = False, blamed: bool = False
    ) -> list[Action]:
        """Ends the live attempt, and with it a hand-over whose reader has not answered yet, unless the reader would not
        have it: then the next one may."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return []
        actions: list[Action] = [Settle(attempt.worker_id, attempt.attempt_id, attempt.leg, ending, reason, blamed)]
        if cancel:
            actions.append(Cancel(attempt.worker_id, attempt.attempt_id))
        if ending is Ending.MOVED and attempt.may_lack_its_ticket:
            return actions
        return [*actions, *self._drop_handover()]

    def _drop_handover(self) -> list[Action]:
        handover, self._handover = self._handover, None
        return [Release(handover.worker_id, handover.lease_id)] if handover is not None and handover.lease_id else []

    def _drop_prefetch(self, *, cancel: bool = True) -> list[Action]:
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is None or not prefetch.live:
            return []
        ending = Ending.CANCELLED if cancel else Ending.FAILED
        actions: list[Action] = [Settle(prefetch.worker_id, prefetch.attempt_id, Leg.PREFETCH, ending)]
        return [*actions, Cancel(prefetch.worker_id, prefetch.attempt_id)] if cancel else actions

    def _failure(self, cause: BatonError) -> list[Action]:
        failed = Emission(self.request_id, [], error=cause)
        return [*self._drop_handover(), Emit(failed), *self._end(Outcome.FAILED)]

    def _end(self, outcome: Outcome) -> list[Action]:
        self._ended, self._waits = True, None
        return [*self._drop_prefetch(), End(outcome)]


def _given_up(worker_id: str, output: EngineOutput) -> tuple[Ending, BatonError]:
    """What it means that the worker ended the attempt before its time."""
    reason = output.error or "the worker ended the attempt"
    if output.finish_reason is FinishReason.MOVED:
        return Ending.MOVED, WorkerLost(f"worker {worker_id} does not go on with the request: {reason}")
    if output.finish_reason is FinishReason.LOST:
        return Ending.LOST, WorkerLost(f"worker {worker_id} lost its engine: {reason}")
    return Ending.FAILED, EngineFailed(f"worker {worker_id} failed the request: {reason}")


def _no_decode() -> NoWorker:
    return NoWorker("no decode worker is ready to continue the request: try again in a moment")
