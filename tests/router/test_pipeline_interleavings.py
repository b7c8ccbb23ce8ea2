"""Any interleaving of answers, losses, stalls, refusals, retries and aborts: a request ends once and owes nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PrefillInProgress, Role, Sampling
from cluster.errors import BatonError, DeadlineExceeded, WorkerLost, WorkerStalled
from protos.baton.v1 import kv_pb2
from router.actions import Action, Cancel, Emit, End, Ending, Later, Release, Settle, Submit
from router.generation import Emission, GenerationRequest, Outcome
from router.pipeline import RequestPipeline
from router.pipeline_questions import PipelineRules, Questions
from router.recovery import RecoveryRules
from router.sampling_state import NO_HISTORY, SamplingFacts
from tests.router.scripted_worker import expected_tokens, next_token

PROMPT = [5, 6, 7]


def ticket(lease_id: str) -> bytes:
    return kv_pb2.Ticket(lease_id=lease_id).SerializeToString()


class Cluster:
    """Workers that answer honestly, die, stall, refuse and come back in any order; counts what the pipeline owes them.
    `running` holds what they work at, though the pipeline may have left it: such an answer comes late."""

    def __init__(
        self, request: GenerationRequest, seed: int, pipelining: bool, may_decode: bool, there: set[str]
    ) -> None:
        self.pipelining = pipelining
        self.may_decode = may_decode
        self.draw = random.Random(seed)
        self.ready = {worker_id: WORKERS[worker_id] for worker_id in sorted(there)}
        self.retries_left = self.draw.randrange(8)
        self.running: dict[str, tuple[str, EngineRequest, int]] = {}  # attempt -> worker, request, tokens produced
        self.reserved: dict[str, str] = {}
        self.leases: set[str] = set()
        self.read: set[str] = set()
        self.released: set[str] = set()
        self.used: set[str] = set()
        self.emitted: list[int] = []
        self.ends: list[Outcome] = []
        self.failed: list[BatonError] = []
        self.finishes = 0
        questions = Questions(self.choose, self.follow, self.whole_pays, self.retry)
        rules = PipelineRules(recovery=RecoveryRules(prefill_may_decode=may_decode))
        self.pipeline = RequestPipeline(request, questions, rules)
        self.apply(self.pipeline.start())

    def choose(self, leg: Leg, role: Role, avoid: frozenset[str], prefer: str | None) -> str | None:
        names = sorted(name for name, has in self.ready.items() if has is role and name not in avoid)
        if prefer in names:
            return prefer
        return self.draw.choice(names) if names else None

    def whole_pays(self, avoid: frozenset[str]) -> bool:
        """As placement says: where a pool has nobody, it is not a question of costs."""
        roles = {role for name, role in self.ready.items() if name not in avoid}
        return self.draw.random() < 0.5 if len(roles) == 2 else bool(roles)

    def retry(self, errors: int) -> float | None:
        assert errors >= 1
        self.retries_left -= 1
        return 0.1 if self.retries_left >= 0 else None

    def follow(self, worker_id: str, request: EngineRequest) -> PrefillInProgress | None:
        assert request.leg is Leg.PREFILL
        wanted = self.pipelining and self.draw.random() < 0.8
        return PrefillInProgress(f"{worker_id}:1", 1, request.attempt_id) if wanted else None

    def apply(self, actions: Sequence[Action]) -> None:
        for action in actions:
            assert not self.ends or isinstance(action, Release)
            match action:
                case Submit(worker_id, request):
                    self.submit(worker_id, request)
                case Settle(worker_id, attempt_id):
                    assert self.reserved.pop(attempt_id) == worker_id
                case Cancel(_, attempt_id):
                    if self.draw.random() < 0.5:
                        self.running.pop(attempt_id, None)  # else its answer is on the way already
                case Later():
                    assert self.reserved == {}, "nothing runs for a request that waits for its retry"
                case Release(_, lease_id):
                    self.released.add(lease_id)
                case Emit(emission):
                    self.emit(emission)
                case End(outcome):
                    self.ends.append(outcome)

    def submit(self, worker_id: str, request: EngineRequest) -> None:
        assert not self.pipeline.waits
        assert worker_id in self.ready
        assert request.attempt_id not in self.used
        assert request.sampling.max_tokens >= 1
        assert bool(request.ticket) is (request.leg is Leg.DECODE)
        if not self.may_decode and self.ready[worker_id] is Role.PREFILL:
            assert request.leg is Leg.PREFILL or request.sampling.max_tokens == 1
            assert request.leg is Leg.WHOLE or Role.DECODE in self.ready.values(), "a prompt for nobody"
        self.check_company(worker_id, request)
        self.used.add(request.attempt_id)
        self.reserved[request.attempt_id] = worker_id
        self.running[request.attempt_id] = (worker_id, request, 0)
        if request.ticket:
            self.read.add(kv_pb2.Ticket.FromString(request.ticket).lease_id)

    def check_company(self, worker_id: str, request: EngineRequest) -> None:
        """One attempt is live at a time, but for a prefetch beside the prefill that it follows or the decode leg that
        waits for it."""
        if request.follow is not None:
            assert list(self.reserved) == [request.follow.attempt_id]
        elif request.after_attempt_id:
            assert self.reserved == {request.after_attempt_id: worker_id}
        else:
            assert self.reserved == {}

    def emit(self, emission: Emission) -> None:
        assert not self.finishes
        assert not self.failed
        self.emitted += emission.token_ids
        if emission.error is not None:
            self.failed.append(emission.error)
        self.finishes += emission.finish_reason is not None

    def step(self, attempt_id: str) -> None:
        """One engine step of an attempt: a token, and the end with the last."""
        worker_id, request, produced = self.running[attempt_id]
        history = request.prompt_token_ids
        tokens = expected_tokens(history, produced + 1)[produced:]
        last = produced + 1 == request.sampling.max_tokens
        pinned = b""
        if last and request.leg is Leg.PREFILL and self.draw.random() < 0.8:
            lease_id = f"lease of {attempt_id}"
            self.leases.add(lease_id)
            pinned = ticket(lease_id)
        self.running[attempt_id] = (worker_id, request, produced + 1)
        if last:
            del self.running[attempt_id]
        reason = FinishReason.LENGTH if last else None
        self.apply(self.pipeline.on_output(worker_id, EngineOutput(attempt_id, tokens, (), reason, None, pinned)))

    def any_attempt(self) -> str:
        return self.draw.choice(sorted(self.running))

    def give_up(self, attempt_id: str, why: FinishReason) -> None:
        worker_id, _, _ = self.running.pop(attempt_id)
        self.apply(self.pipeline.on_output(worker_id, EngineOutput(attempt_id, [], finish_reason=why, error="no")))

    def kill(self, worker_id: str) -> None:
        self.ready.pop(worker_id, None)
        for attempt_id in [a for a, (worker, _, _) in self.running.items() if worker == worker_id]:
            del self.running[attempt_id]
        self.apply(self.pipeline.on_worker_lost(worker_id, WorkerLost(f"{worker_id} died")))

    def stall(self, worker_id: str) -> None:
        """What it has may yet be answered."""
        self.ready.pop(worker_id, None)
        stalled = WorkerStalled(f"{worker_id} makes no step")
        self.apply(self.pipeline.on_worker_lost(worker_id, stalled, Ending.STALLED))
        assert worker_id not in self.reserved.values()

    def late_prefill(self) -> None:
        for attempt_id in list(self.reserved):
            self.apply(self.pipeline.on_attempt_late(attempt_id, DeadlineExceeded("late")))


WORKERS = {"p1": Role.PREFILL, "p2": Role.PREFILL, "d1": Role.DECODE, "d2": Role.DECODE}
EVENTS = st.lists(
    st.sampled_from(
        ["step"] * 12
        + [f"{what} {worker_id}" for what in ("kill", "stall", "back") for worker_id in WORKERS]
        + [f"give-up {why}" for why in ("ERROR", "ERROR", "ERROR", "MOVED", "LOST")]
        + ["retry", "retry", "late", "cancel", "deadline"]
    ),
    max_size=60,
)
FACTS = st.sampled_from([NO_HISTORY, SamplingFacts(seeded=True), SamplingFacts(grammar=True)])


@settings(max_examples=400, deadline=None)
@given(
    events=EVENTS,
    max_tokens=st.integers(1, 8),
    facts=FACTS,
    seed=st.integers(0, 2**16),
    pipelining=st.booleans(),
    may_decode=st.booleans(),
    there=st.sets(st.sampled_from(sorted(WORKERS)), min_size=1),
)
def test_every_request_ends_once_with_contiguous_tokens_and_owes_nothing(
    events: list[str],
    max_tokens: int,
    facts: SamplingFacts,
    seed: int,
    pipelining: bool,
    may_decode: bool,
    there: set[str],
) -> None:
    request = GenerationRequest("r", list(PROMPT), Sampling(max_tokens=max_tokens), facts)
    cluster = Cluster(request, seed, pipelining, may_decode, there)
    for event in events:
        play(cluster, event)
    while cluster.running or cluster.pipeline.waits:
        if cluster.running:
            cluster.step(cluster.any_attempt())
        else:
            cluster.apply(cluster.pipeline.on_retry())

    assert len(cluster.ends) == 1
    assert cluster.emitted == expected_tokens(PROMPT, len(cluster.emitted))
    assert cluster.reserved == {}
    assert cluster.leases <= cluster.read | cluster.released
    match cluster.ends[0]:
        case Outcome.COMPLETED:
            assert (len(cluster.emitted), cluster.finishes, cluster.failed) == (max_tokens, 1, [])
        case Outcome.FAILED:
            assert (cluster.finishes, len(cluster.failed)) == (0, 1)
        case Outcome.CANCELLED:
            assert (cluster.finishes, cluster.failed) == (0, [])


def play(cluster: Cluster, event: str) -> None:
    match event.split():
        case ["step"] if cluster.running:
            cluster.step(cluster.any_attempt())
        case ["give-up", why] if cluster.running:
            cluster.give_up(cluster.any_attempt(), FinishReason[why])
        case ["kill", worker_id]:
            cluster.kill(worker_id)
        case ["stall", worker_id]:
            cluster.stall(worker_id)
        case ["back", worker_id]:
            cluster.ready[worker_id] = WORKERS[worker_id]
        case ["retry"]:
            cluster.apply(cluster.pipeline.on_retry())
        case ["late"]:
            cluster.late_prefill()
        case ["cancel"]:
            cluster.apply(cluster.pipeline.cancel(Outcome.CANCELLED))
        case ["deadline"]:
            cluster.apply(cluster.pipeline.fail(DeadlineExceeded("over")))


def test_the_scripted_tokens_depend_on_the_whole_history() -> None:
    assert next_token([1, 2, 3]) != next_token([1, 2, 4])
