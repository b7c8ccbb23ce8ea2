"""The door in front of a dispatch: who runs, waits and is refused, and that whoever leaves the queue leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cluster.block_hashes import chain_seed, extend_chain
from cluster.config import RouterConfig
from cluster.config_admission import AdmissionConfig
from cluster.engine import Role, Sampling
from cluster.errors import (
    BatonError,
    ConfigError,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    NoWorker,
    Overloaded,
    RequestTooLarge,
    StoreUnavailable,
    TenantLimited,
)
from cluster.quota import Claim, Denied, Granted, Returned, Verdict
from cluster.wire import role_to_wire
from protos.baton.v1 import worker_pb2
from router.caller import Caller
from router.dispatch import Dispatch
from router.gate import Gate
from router.generation import Emission, GenerationRequest, Outcome
from tests.router.dispatch_parts import BLOCK_TOKENS, MODEL, RETURN_S, new_journal, parts


class Counter:
    """Implements `gate.Quota`: keeps questions until the test answers them."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Claim, Callable[[Verdict | BatonError], None]]] = {}
        self.dropped: list[str] = []
        self.returned: list[Returned] = []

    def ask(self, claim: Claim, answer: Callable[[Verdict | BatonError], None]) -> None:
        self.asked[claim.claim_id] = (claim, answer)

    def drop(self, claim_id: str) -> None:
        del self.asked[claim_id]
        self.dropped.append(claim_id)

    def give_back(self, returned: Returned) -> None:
        self.returned.append(returned)

    def answer(self, claim_id: str, verdict: Verdict | BatonError) -> None:
        self.asked.pop(claim_id)[1](verdict)


class Bench:
    """One worker that answers when told, two places to run, a clock that is a number."""

    def __init__(self, **admission: Any) -> None:
        self.now = 0.0
        self.running: list[str] = []  # request ids, in the order in which they reached a worker
        self.attempts: dict[str, str] = {}
        self.aborted: list[str] = []
        self.emissions: list[Emission] = []
        self.quota = Counter()
        config = RouterConfig(max_in_flight=2, request_deadline_s=50.0)
        rules = AdmissionConfig.model_validate(admission)
        self.gate = Gate(rules, config.max_in_flight, lambda: self.now, self.quota)
        self.journal = new_journal()
        made = parts(lambda: self.now, gate=self.gate, journal=self.journal)
        self.dispatch = Dispatch(config, self.post, lambda: self.now, made)
        self.dispatch.connect(self)
        description = worker_pb2.WorkerDescription(worker_id="d1", role=role_to_wire(Role.DECODE), num_blocks=100)
        self.dispatch.worker_up(description)

    def post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        if message.HasField("submit"):
            request_id = message.submit.attempt_id.split("/")[0]
            self.running.append(request_id)
            self.attempts[request_id] = message.submit.attempt_id
        self.aborted += message.abort.attempt_ids
        return True

    def deliver(self, emissions: Sequence[Emission]) -> None:
        self.emissions += emissions

    def ask(
        self,
        *request_ids: str,
        tenant: str = "a",
        priority: str = "",
        prompt: int = 8,
        deadline: float | None = None,
    ) -> None:
        for request_id in request_ids:
            caller = Caller(tenant, priority, deadline=deadline)
            self.dispatch.submit(
                GenerationRequest(request_id, list(range(prompt)), Sampling(2), caller=caller),
            )

    def finish(self, request_id: str) -> None:
        last = worker_pb2.Output(
            attempt_id=self.attempts[request_id], token_ids=[1], finish_reason=worker_pb2.FINISH_REASON_STOP
        )
        last.origin.CopyFrom(worker_pb2.PromptOrigin(prompt_tokens=8, cached_tokens=3))
        self.dispatch.on_step("d1", worker_pb2.StepOutputs(outputs=[last]))

    def error_of(self, request_id: str) -> BatonError | None:
        return next(emission.error for emission in self.emissions if emission.request_id == request_id)

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(self.dispatch.counters().requests_by_outcome)


LIMITED = {"tenants": {"a": {"max_concurrent": 3}}}


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(**getattr(request, "param", {}))
    yield bench
    bench.dispatch.check_integrity()
    bench.dispatch.fail_all(NoWorker("the end"))
    bench.dispatch.check_integrity()
    assert bench.dispatch.in_flight == 0
    assert bench.quota.asked == {}


def test_what_finds_no_place_waits_and_runs_when_one_ends(bench: Bench) -> None:
    bench.ask("r1", "r2", "r3", "r4")
    assert bench.running == ["r1", "r2"]
    counters = bench.dispatch.counters()
    assert (counters.in_flight, counters.queued, counters.queued_tokens) == (4, 2, 20)
    bench.finish("r2")
    assert bench.running == ["r1", "r2", "r3"]


def test_a_better_class_goes_first(bench: Bench) -> None:
    bench.ask("r1", "r2")
    bench.ask("slow", priority="batch")
    bench.ask("quick", priority="interactive")
    bench.finish("r1")
    bench.finish("r2")
    assert bench.running[2:] == ["quick", "slow"]


def test_a_request_cancelled_in_the_queue_never_reaches_a_worker_and_is_counted(bench: Bench) -> None:
    bench.ask("r1", "r2", "r3")
    bench.dispatch.cancel(["r3"])
    bench.finish("r1")
    assert bench.running == ["r1", "r2"]
    assert bench.aborted == []
    assert bench.outcomes == {"cancelled": 1, "completed": 1}
    assert bench.dispatch.counters().queued == 0


@pytest.mark.parametrize("bench", [{"queue": {"most_wait_s": 1000.0}}], indirect=True)
def test_a_request_whose_deadline_passes_in_the_queue_is_refused_then(bench: Bench) -> None:
    bench.ask("r1", "r2", "r3")
    bench.now = 49.9
    bench.dispatch.on_time()
    assert bench.emissions == []
    bench.now = 50.0
    bench.dispatch.on_time()
    assert bench.running == ["r1", "r2"]
    assert isinstance(bench.error_of("r3"), DeadlineExceeded)
    assert bench.outcomes == {"failed": 2, "refused": 1}


def test_a_clients_own_deadline_counts_where_it_comes_before_the_routers() -> None:
    bench = Bench(queue={"most_wait_s": 1000.0}, cold_tokens_per_s=1.0)
    bench.ask("r1", "r2")
    bench.ask("patient", deadline=1_000.0)
    bench.ask("hurried", deadline=5.0)  # behind the ten tokens of the one before
    assert isinstance(bench.error_of("hurried"), DeadlineUnreachable)
    bench.ask("in time", tenant="b", deadline=20.0)
    bench.now = 20.0
    bench.dispatch.on_time()
    assert isinstance(bench.error_of("in time"), DeadlineExceeded)
    assert [emission.request_id for emission in bench.emissions] == ["hurried", "in time"]
    bench.now = 50.0
    bench.dispatch.on_time()
    assert isinstance(bench.error_of("patient"), DeadlineExceeded)


def test_a_request_that_has_waited_too_long_is_refused_and_told_when_to_come_back() -> None:
    bench = Bench(queue={"most_wait_s": 5.0})
    bench.ask("r1", "r2", "r3")
    bench.now = 4.9
    bench.dispatch.on_time()
    assert bench.emissions == []
    bench.now = 5.0
    bench.dispatch.on_time()
    error = bench.error_of("r3")
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 5.0
    assert bench.outcomes == {"refused": 1}
    record = bench.journal.find("r3")
    assert record is not None
    assert (record.outcome, record.error, record.decisions, record.attempts) == ("refused", str(error), [], [])
    bench.dispatch.check_integrity()


def test_of_those_that_wait_the_one_whose_prompt_came_into_a_cache_meanwhile_goes_first(bench: Bench) -> None:
    bench.ask("r1", "r2")
    bench.dispatch.submit(GenerationRequest("cold", [7] * 64, Sampling(2), caller=Caller("a")))
    bench.ask("warm", prompt=48)
    held = extend_chain(chain_seed(MODEL, "", ""), list(range(48)), BLOCK_TOKENS)
    bench.dispatch.placing.placement.index.blocks_stored("d1", held)
    bench.dispatch.on_time()
    bench.finish("r1")
    bench.finish("r2")
    assert bench.running[2:] == ["warm", "cold"]


def test_the_journal_tells_who_asked_in_which_class_and_how_long_it_waited() -> None:
    bench = Bench()
    bench.ask("r1", "r2")
    bench.ask("r3", tenant="acme")
    bench.now = 2.5
    bench.finish("r1")
    record = bench.journal.find("r3")
    assert record is not None
    assert (record.tenant, record.queued_s) == ("acme", 2.5)
    bench.finish("r2")
    bench.finish("r3")
    first = bench.journal.find("r1")
    assert first is not None
    assert (first.queued_s, first.outcome) == (0.0, "completed")


@pytest.mark.parametrize("bench", [{"queue": {"max_requests": 2, "class_reserve": 0.0}}], indirect=True)
def test_a_full_queue_refuses_the_heavy_tenant_at_once_and_lets_the_light_one_in(bench: Bench) -> None:
    bench.ask("r1", "r2", "r3", "r4")
    with pytest.raises(Overloaded, match="2 requests of 20 tokens wait already"):
        bench.dispatch.admit(1, Caller("a"))
    bench.dispatch.admit(1, Caller("light"))
    bench.ask("r5", tenant="light")
    assert isinstance(bench.error_of("r4"), Overloaded)
    assert bench.outcomes == {"refused": 2}
    bench.finish("r1")
    bench.finish("r2")
    assert sorted(bench.running[2:]) == ["r3", "r5"]


def test_an_unknown_class_is_the_clients_mistake(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="interactive, standard, batch"):
        bench.dispatch.admit(1, Caller("a", "vip"))
    bench.ask("r1", priority="vip")
    assert isinstance(bench.error_of("r1"), InvalidRequest)
    assert bench.running == []


@pytest.mark.parametrize("bench", [{"tenants": {"a": {"max_prompt_tokens": 8}}}], indirect=True)
def test_a_prompt_longer_than_its_tenant_may_send_is_refused_before_it_waits(bench: Bench) -> None:
    bench.ask("r1", prompt=9)
    assert isinstance(error := bench.error_of("r1"), RequestTooLarge)
    assert "9 tokens, your limit is 8" in str(error)
    bench.ask("r2", prompt=8)
    bench.ask("r3", prompt=9, tenant="b")
    assert bench.running == ["r2", "r3"]


def test_a_long_queue_that_finds_no_worker_is_refused_without_depth(bench: Bench) -> None:
    waiting = [f"w{number}" for number in range(3_000)]
    bench.ask("r1", "r2", *waiting)
    bench.dispatch.worker_down("d1", NoWorker("gone"))
    assert bench.outcomes == {}, "it may be back in a moment"
    bench.now += RETURN_S
    bench.dispatch.on_time()
    assert bench.outcomes == {"failed": 3_002}
    assert all(isinstance(emission.error, NoWorker) for emission in bench.emissions)


@pytest.mark.parametrize("bench", [LIMITED], indirect=True)
def test_a_tenant_with_limits_is_asked_for_first_and_gives_back_what_it_did_not_use(bench: Bench) -> None:
    bench.ask("r1")
    assert bench.running == []
    bench.quota.answer("r1", Granted())
    assert bench.running == ["r1"]
    bench.finish("r1")
    (returned,) = bench.quota.returned
    # 8 prompt tokens and 2 of output were claimed; 3 were cached, and 1 came out.
    assert (returned.claim_id, returned.unused_tokens, returned.unused_requests) == ("r1", 4, 0)


@pytest.mark.parametrize("bench", [LIMITED], indirect=True)
def test_a_tenant_over_its_limit_hears_when_to_come_back(bench: Bench) -> None:
    bench.ask("r1")
    bench.ask("other", tenant="b")
    bench.quota.answer("r1", Denied("requests", 7.5))
    error = bench.error_of("r1")
    assert isinstance(error, TenantLimited)
    assert error.retry_after_s == 7.5
    assert bench.running == ["other"]
    assert bench.quota.returned == []


@pytest.mark.parametrize("bench", [LIMITED], indirect=True)
def test_a_request_cancelled_while_its_quota_is_asked_for_drops_the_claim(bench: Bench) -> None:
    bench.ask("r1")
    bench.dispatch.cancel(["r1"], Outcome.CANCELLED)
    assert bench.quota.dropped == ["r1"]
    assert bench.outcomes == {"cancelled": 1}


@pytest.mark.parametrize("bench", [LIMITED], indirect=True)
def test_a_request_that_leaves_the_queue_unserved_gives_everything_back(bench: Bench) -> None:
    bench.ask("r1", "r2", tenant="b")
    bench.ask("r3")
    bench.quota.answer("r3", Granted())
    assert bench.dispatch.counters().queued == 1
    bench.dispatch.cancel(["r3"])
    (returned,) = bench.quota.returned
    assert (returned.unused_tokens, returned.unused_requests) == (10, 1)


@pytest.mark.parametrize("bench", [LIMITED], indirect=True)
def test_a_quota_that_nobody_can_tell_refuses_the_request(bench: Bench) -> None:
    bench.ask("r1")
    bench.quota.answer("r1", StoreUnavailable("no answer"))
    assert isinstance(bench.error_of("r1"), StoreUnavailable)


def test_limits_without_a_place_to_count_them_are_no_configuration() -> None:
    with pytest.raises(ConfigError, match="limits"):
        Gate(AdmissionConfig.model_validate(LIMITED), 1, lambda: 0.0)
