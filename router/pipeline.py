"""The way of one request over the fleet, as a state machine: an event in, actions out, no I/O and no clock.

One attempt is live at a time; beside a prefill there may be a prefetch of its blocks on the decode worker to be, which
helps or does not, and whose failure changes nothing. Arrival, hand-over and every failure go through `_advance`, the
only place that decides what is tried next. It must not know how workers are reached, nor how one is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PrefillInProgress, Role, Sampling
from cluster.errors import BatonError, EngineFailed, NoWorker, TicketRefused, WorkerLost
from protos.baton.v1 import kv_pb2
from router.actions import Action, Cancel, Emit, End, Ending, Release, Settle, Submit
from router.generation import Emission, GenerationRequest, Outcome
from router.sampling_state import may_change_worker, prefill_may_sample

Choose = Callable[[Leg, Role, frozenset[str], str | None], str | None]
"""Picks a ready worker of the role for the leg, none of the given ids, the one preferred if it can be; None when there
is none."""

WholePays = Callable[[frozenset[str]], bool]
"""Whether a request that could be split had better run whole on a decode worker, the given ids apart."""

Follow = Callable[[str, EngineRequest], PrefillInProgress | None]
"""How others can follow this prefill leg on this worker; None: it is not worth it, or cannot be."""

ATTEMPT_LIMIT = 6
"""Attempts for one request, all legs together: a request that breaks its workers must not walk through a whole pool."""


@dataclass(slots=True)
class _Attempt:
    attempt_id: str
    leg: Leg
    worker_id: str
    answered: bool = False


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
    """One request. After `End` every event is answered with at most a `Release` for a late ticket.

    `first_token_from_prefill`: whether decode can go on behind a token that prefill sampled; if not, decode samples
    the first token of every request itself.
    """

    def __init__(
        self,
        request: GenerationRequest,
        choose: Choose,
        follow: Follow = lambda *_: None,
        first_token_from_prefill: bool = True,
        whole_pays: WholePays = lambda _: False,
    ) -> None:
        self._request = request
        self._choose = choose
        self._whole_pays = whole_pays
        self._follow = follow
        self._seeding = first_token_from_prefill and prefill_may_sample(request.facts)
        self._attempt: _Attempt | None = None
        self._attempts = 0
        self._moves = 0
        self._prefilled = False
        self._handover: _Handover | None = None
        self._prefetch: _Prefetch | None = None
        self._avoid: frozenset[str] = frozenset()
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
    def remaining(self) -> int:
        return self._request.sampling.max_tokens - len(self._emitted)

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
        if output.finish_reason is FinishReason.MOVED:
            return self._move(attempt, output.error)
        if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            reason = output.error or "the worker ended the attempt"
            cause = EngineFailed(f"worker {worker_id} failed the request: {reason}")
            # A refused ticket says nothing about the worker: it may well compute the prompt itself.
            return stray_ticket(worker_id, output) + self._recover(cause, blame=attempt.leg is not Leg.DECODE)
        if attempt.leg is Leg.PREFILL:
            return self._on_prefilled(attempt, output)
        return self._on_tokens(attempt, output)

    def on_worker_lost(self, worker_id: str, cause: BatonError) -> list[Action]:
        actions: list[Action] = []
        if self._prefetch is not None and self._prefetch.worker_id == worker_id:
            actions += self._drop_prefetch(cancel=False)
        attempt = self._attempt
        if attempt is None or attempt.worker_id != worker_id:
            return actions
        return actions + self._recover(cause, blame=True)

    def on_attempt_late(self, attempt_id: str, cause: BatonError) -> list[Action]:
        """The attempt had its time; another one is made."""
        attempt = self._attempt
        if attempt is None or attempt.attempt_id != attempt_id:
            return []
        return self._recover(cause, blame=True, late=True)

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
            return stray_ticket(attempt.worker_id, output) + self._recover(cause, blame=True)
        lease_id = lease_of(output.ticket)  # before any change: it raises for a broken ticket
        self._note_origin(output)
        self._prefilled = True
        actions = self._leave()
        if output.ticket:
            self._handover = _Handover(output.ticket, lease_id, attempt.worker_id)
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
        if output.finish_reason not in (FinishReason.ERROR, FinishReason.ABORT, FinishReason.MOVED):
            return [Settle(prefetch.worker_id, prefetch.attempt_id)]
        self._prefetch = None
        return [Settle(prefetch.worker_id, prefetch.attempt_id, Ending.FAILED, output.error)]

    def _on_tokens(self, attempt: _Attempt, output: EngineOutput) -> list[Action]:
        done: list[Action] = []
        if not attempt.answered:
            attempt.answered = True
            done = self._drop_prefetch()
            self.handed_over = attempt.leg is Leg.DECODE
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

    def _recover(self, cause: BatonError, *, blame: bool, late: bool = False) -> list[Action]:
        if blame and self._attempt is not None:
            self._avoid |= {self._attempt.worker_id}
        ending = Ending.LATE if late else Ending.FAILED
        return [*self._leave(ending, str(cause), cancel=late, blamed=blame), *self._advance(cause)]

    def _move(self, attempt: _Attempt, reason: str) -> list[Action]:
        """Its worker is leaving, and nobody is to blame: it goes on elsewhere. Each worker is left once, so a request
        never moves more often than there are workers."""
        self._avoid |= {attempt.worker_id}
        self._moves += 1
        cause = WorkerLost(f"worker {attempt.worker_id} did not finish the request: {reason}")
        return [*self._leave(Ending.MOVED, reason), *self._advance(cause)]

    def _advance(self, cause: BatonError) -> list[Action]:
        """Tries what comes next; `cause` is what the client hears when nothing is left."""
        stuck = bool(self._emitted) and not may_change_worker(self._request.facts)
        if stuck or self._attempts - self._moves >= ATTEMPT_LIMIT:
            return self._failure(cause)
        for leg, role in self._rungs():
            has_blocks = self._prefetch.worker_id if self._prefetch is not None and role is Role.DECODE else None
            worker_id = self._choose(leg, role, self._avoid, has_blocks)
            if worker_id is not None:
                return self._submit(leg, worker_id)
        return self._failure(cause)

    def _rungs(self) -> tuple[tuple[Leg, Role], ...]:
        """What to try next, best first.

        a prompt to run, more than one token wanted   prefill, else all of it on a decode worker
        the same where that is predicted to be worse  the other way round
        a prompt to run, one token wanted             all of it on a prefill worker, else on a decode worker
        the same with a seed                          the other way round: who cuts prompts into chunks may refuse it
        blocks wait for a reader                      decode; if none is ready, the prefill worker continues itself
        the hand-over is off                          prompt and emitted tokens on a decode worker, else on prefill
        """
        if self._handover is not None:
            return (Leg.DECODE, Role.DECODE), (Leg.WHOLE, Role.PREFILL)
        if self._prefilled or self._emitted:
            return (Leg.WHOLE, Role.DECODE), (Leg.WHOLE, Role.PREFILL)
        if self.remaining == 1:
            whole = (Leg.WHOLE, Role.PREFILL), (Leg.WHOLE, Role.DECODE)
            return whole[::-1] if self._request.facts.seeded else whole
        apart = (Leg.PREFILL, Role.PREFILL), (Leg.WHOLE, Role.DECODE)
        return apart[::-1] if self._whole_pays(self._avoid) else apart

    def _submit(self, leg: Leg, worker_id: str) -> list[Action]:
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
            trace_headers=self._request.trace_headers,
            after_attempt_id=self._prefetch.attempt_id if self._prefetch is not None and self._prefetch.live else "",
        )
        return [*dropped, Submit(worker_id, request), *self._submit_prefetch(worker_id, request)]

    def _submit_prefetch(self, worker_id: str, request: EngineRequest) -> list[Action]:
        """Beside a prefill: its blocks go to the decode worker of today, chunk by chunk."""
        follow = self._follow(worker_id, request) if request.leg is Leg.PREFILL else None
        decode = self._choose(Leg.PREFETCH, Role.DECODE, self._avoid, None) if follow is not None else None
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
            trace_headers=request.trace_headers,
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
        """Ends the live attempt, and with it a hand-over whose reader has not answered yet."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return []
        actions: list[Action] = [Settle(attempt.worker_id, attempt.attempt_id, ending, reason, blamed)]
        if cancel:
            actions.append(Cancel(attempt.worker_id, attempt.attempt_id))
        return [*actions, *self._drop_handover()]

    def _drop_handover(self) -> list[Action]:
        handover, self._handover = self._handover, None
        return [Release(handover.worker_id, handover.lease_id)] if handover is not None and handover.lease_id else []

    def _drop_prefetch(self, *, cancel: bool = True) -> list[Action]:
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is None or not prefetch.live:
            return []
        ending = Ending.CANCELLED if cancel else Ending.FAILED
        actions: list[Action] = [Settle(prefetch.worker_id, prefetch.attempt_id, ending)]
        return [*actions, Cancel(prefetch.worker_id, prefetch.attempt_id)] if cancel else actions

    def _failure(self, cause: BatonError) -> list[Action]:
        failed = Emission(self.request_id, [], error=cause)
        return [*self._drop_handover(), Emit(failed), *self._end(Outcome.FAILED)]

    def _end(self, outcome: Outcome) -> list[Action]:
        self._ended = True
        return [*self._drop_prefetch(), End(outcome)]


def stray_ticket(worker_id: str, output: EngineOutput) -> list[Action]:
    """What to do with an output that nobody waits for: a ticket in it holds blocks that must go back."""
    lease_id = lease_of(output.ticket)
    return [Release(worker_id, lease_id)] if lease_id else []


def lease_of(ticket: bytes) -> str:
    """Empty for no ticket. Raises `TicketRefused` for bytes that are none. The rest is for the reader to check."""
    try:
        return kv_pb2.Ticket.FromString(ticket).lease_id
    except DecodeError as error:
        raise TicketRefused("a prefill worker answered with a ticket that cannot be read") from error


def _no_decode() -> NoWorker:
    return NoWorker("no decode worker is ready to continue the request: try again in a moment")
