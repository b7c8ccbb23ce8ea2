"""What happens to each request, written into the journal as it happens: choices with their reasons, attempts, times.

Turns the records of `decision` into those of `journal_record`. It must not know who reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.engine import EngineOutput, EngineRequest, Leg
from cluster.tracing import TraceContext
from router import journal_record as written
from router.actions import AS_WANTED, Ending, Settle
from router.cache_counts import CacheCounts
from router.caller import Caller
from router.decision import Candidate, Decision, Why
from router.fleet_events import FleetEvents
from router.generation import Emission, GenerationRequest, Outcome
from router.journal import CANDIDATES, Journal
from router.request_metrics import FirstToken, RequestMetrics
from router.seen import Seen

_REASONS = {
    Why.BEST: "the least predicted time",
    Why.TIE: "drawn among those with the least predicted time",
    Why.SESSION: "its session was there before, and it costs little more than the best",
    Why.PREFETCHED: "the prompt's blocks are on their way there",
    Why.ONLY: "no other worker could take it",
    Why.TURN: "its turn: the configuration has workers picked round robin",
    Why.CHANCE: "drawn at random: the configuration has it so",
}
_COSTS = ("queue", "prefill", "transfer", "decode", "room", "harm", "evict")


Traced = Callable[[written.RequestRecord, TraceContext], None]
"""Takes the finished record of a request that is traced; must neither wait nor raise."""


@dataclass(slots=True)
class _Attempt:
    """`first`: when its first output came."""

    leg: Leg
    since: float
    first: float | None = None


@dataclass(slots=True)
class _Running:
    """Times in seconds of the router's clock. `key`: the record's name in the journal. `latest`: the attempt that the
    next token comes from. `most_cached`: of the prompt's tokens, at the first choice."""

    key: str
    record: written.RequestRecord
    caller: Caller
    arrived: float
    first_sent: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    error: str = ""
    attempts: dict[str, _Attempt] = field(default_factory=dict)
    latest: _Attempt | None = None
    most_cached: int | None = None


class RequestJournal:
    """`now`: the router's monotonic clock; `wall`: seconds since 1970. `first_token_from_prefill`: whether a hand-over
    comes after the first token, or before it. `metrics` and `traced` are told what is written, `events` what befell a
    worker. What comes for a request that has ended, or never began, is left out."""

    def __init__(
        self,
        journal: Journal,
        now: Callable[[], float],
        wall: Callable[[], float],
        first_token_from_prefill: bool = True,
        metrics: RequestMetrics | None = None,
        traced: Traced | None = None,
        events: FleetEvents | None = None,
    ) -> None:
        self.events = events or FleetEvents(wall)
        self.cache = CacheCounts()
        self._journal = journal
        self._now = now
        self._wall = wall
        self._first_token_from_prefill = first_token_from_prefill
        self._metrics = metrics or RequestMetrics("")
        self._traced = traced
        self._running: dict[str, _Running] = {}
        self._keys: set[str] = set()

    def begin(self, request: GenerationRequest) -> None:
        """Of several requests that the client knows by one name, the first to come is found by it."""
        key = request.client_id or request.request_id
        if key in self._keys:
            key = request.request_id
        self._keys.add(key)
        caller = request.caller
        record = self._journal.begin(key, caller.tenant, len(request.prompt_token_ids), self._wall())
        record.session_id, record.priority = request.session_id, caller.priority
        record.trace_id = "" if caller.trace is None else caller.trace.trace_id
        self._running[request.request_id] = _Running(key, record, caller, self._now())

    def admitted(self, request_id: str) -> None:
        """It waits no longer in admission's queue."""
        if running := self._running.get(request_id):
            running.record.queued_s = self._now() - running.arrived

    def decided(self, request_id: str, decision: Decision, output_tokens: int) -> None:
        """`output_tokens`: over which the decision reckoned decode."""
        if (running := self._running.get(request_id)) is None:
            return
        record, at_s = running.record, self._now() - running.arrived
        if not record.decisions:
            record.cached_tokens_predicted = decision.chosen.cached_tokens
            running.most_cached = int(decision.table.cached_tokens.max())
            ttft_s = decision.chosen.queue_s + decision.chosen.prefill_s
            late = decision.leg is Leg.PREFILL and not self._first_token_from_prefill
            record.predicted = written.Timing(ttft_s=ttft_s + (decision.chosen.transfer_s if late else 0.0))
        if decision.leg is Leg.DECODE and output_tokens:
            itl_s = decision.chosen.decode_s / output_tokens
            record.predicted = written.Timing(record.predicted.ttft_s, itl_s)
        if decision.instead is not None:
            self._journal.decided(running.key, _whether_apart(decision, at_s))
        self._journal.decided(running.key, _where(decision, at_s))

    def submitted(self, request_id: str, attempt: EngineRequest) -> None:
        if running := self._running.get(request_id):
            sent = running.attempts[attempt.attempt_id] = _Attempt(attempt.leg, self._now())
            if attempt.leg is not Leg.PREFETCH:
                running.latest = sent
                running.first_sent = running.first_sent or sent.since

    def moved(self, request_id: str, output: EngineOutput) -> None:
        """By which steps the attempt's blocks came to its worker."""
        if (running := self._running.get(request_id)) is None:
            return
        for rung in output.rungs:
            self._metrics.rung(rung)
            step = written.Rung(
                attempt_id=output.attempt_id,
                transport=rung.transport,
                outcome=rung.outcome,
                blocks=rung.blocks,
                size=rung.bytes,
                reason=rung.reason,
                at_s=max(0.0, rung.began_unix_s - running.record.at_unix_s) if rung.began_unix_s else 0.0,
                duration_s=rung.seconds,
                handshake_s=rung.handshake_s,
            )
            self._journal.stepped(running.key, step)

    def settled(self, request_id: str, settle: Settle) -> None:
        running = self._running.get(request_id)
        if running is None or settle.attempt_id not in running.attempts:
            return
        sent, now = running.attempts.pop(settle.attempt_id), self._now()
        if sent.first is None and settle.ending is Ending.COMPLETED and sent.leg is not Leg.PREFETCH:
            sent.first = now  # its first output was its last
        attempt = written.Attempt(
            attempt_id=settle.attempt_id,
            leg=sent.leg.value,
            worker_id=settle.worker_id,
            at_s=sent.since - running.arrived,
            duration_s=now - sent.since,
            outcome=settle.ending.value,
            reason=settle.reason,
            first_at_s=None if sent.first is None else sent.first - running.arrived,
        )
        self._journal.attempted(running.key, attempt)
        recomputed_s = _recomputed_s(attempt, running.record.rungs)
        if recomputed_s is not None:
            self._metrics.recomputed(recomputed_s)
        if settle.ending not in AS_WANTED and sent.leg is not Leg.PREFETCH:
            self.events.add(Seen.RECOVERED, settle.worker_id, _recovered(settle), running.key)

    def emitted(self, emission: Emission) -> None:
        running = self._running.get(emission.request_id)
        if running is None:
            return
        if emission.error is not None:
            running.error = str(emission.error)
        if emission.cached_tokens is not None:
            running.record.cached_tokens_actual = emission.cached_tokens
        if emission.token_ids:
            self._came(running, len(emission.token_ids), self._now())

    def end(self, request_id: str, outcome: Outcome) -> None:
        running = self._running.pop(request_id, None)
        if running is not None:
            self._keys.discard(running.key)
            record, trace = running.record, running.caller.trace
            record.duration_s = self._now() - running.arrived
            self.cache.add(record)
            self._journal.end(running.key, outcome.value, _actual(running), running.error)
            self._metrics.ended(record, running.most_cached)
            if self._traced is not None and trace is not None and trace.sampled:
                self._traced(record, trace)

    def _came(self, running: _Running, tokens: int, now: float) -> None:
        """Tokens of the request. Called for each of them, so that it does little."""
        running.record.output_tokens += tokens
        if running.first_token is None:
            running.first_token = now
            running.caller.first_token = running.caller.first_token or now
            self._metrics.first_token(_first_token(running, now))
        else:
            self._metrics.between(now - running.last_token, tokens)
        running.last_token = now
        if running.latest is not None and running.latest.first is None:
            running.latest.first = now


def _first_token(running: _Running, now: float) -> FirstToken:
    record, admitted = running.record, running.arrived + running.record.queued_s
    sent = running.first_sent or admitted
    since = sent if running.latest is None else running.latest.since
    return FirstToken(now - running.arrived, record.queued_s, sent - admitted, now - since, record.predicted.ttft_s)


def _recomputed_s(attempt: written.Attempt, rungs: list[written.Rung]) -> float | None:
    """How long decode computed a prompt whose blocks did not come; None: they came, or were not to."""
    last = next((rung for rung in reversed(rungs) if rung.attempt_id == attempt.attempt_id), None)
    if last is None or last.outcome == "landed" or attempt.first_at_s is None:
        return None
    return max(0.0, attempt.first_at_s - max(attempt.at_s, last.at_s + last.duration_s))


def _recovered(settle: Settle) -> str:
    """Equal for all attempts that one cause ended."""
    return f"{settle.ending.value}: {settle.reason}" if settle.reason else settle.ending.value


def _actual(running: _Running) -> written.Timing:
    if running.first_token is None:
        return written.Timing()
    between = running.record.output_tokens - 1
    itl_s = (running.last_token - running.first_token) / between if between > 0 else None
    return written.Timing(running.first_token - running.arrived, itl_s)


def _where(decision: Decision, at_s: float) -> written.Decision:
    candidates = decision.candidates(CANDIDATES)
    cached = decision.chosen.cached_tokens
    return written.Decision(
        question=decision.leg.value,
        at_s=at_s,
        chosen=decision.chosen.worker_id,
        runner_up=candidates[1].worker_id if len(candidates) > 1 else "",
        candidates=tuple(map(_candidate, candidates)),
        left_out=decision.considered - len(candidates),
        because=_REASONS[decision.why] + (f"; it has {cached} tokens of the prompt" if cached else ""),
    )


def _whether_apart(decision: Decision, at_s: float) -> written.Decision:
    """The best of both ways, by the workers that the prompt would go to."""
    best, other = decision.table.candidate(int(decision.table.total.argmin())), decision.best_instead
    assert other is not None
    apart = decision.leg is Leg.PREFILL
    way = "prefill apart from decode" if apart else "prompt and output on one worker"
    return written.Decision(
        question="disaggregate",
        at_s=at_s,
        chosen=best.worker_id,
        runner_up=other.worker_id,
        candidates=(_candidate(best), _candidate(other)),
        because=f"{way}: {best.total_s:.4g} s predicted, the other way {other.total_s:.4g} s",
    )


def _candidate(candidate: Candidate) -> written.Candidate:
    terms = {name: float(getattr(candidate, f"{name}_s")) for name in _COSTS}
    return written.Candidate(candidate.worker_id, {name: cost for name, cost in terms.items() if cost})
