"""Events of the fleet to requests and back: batching, counters, deadlines, admission, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from cluster.config import RouterConfig
from cluster.engine import FinishReason, Role, Sampling
from cluster.errors import DeadlineExceeded, EngineFailed, NoWorker, RetriesSpent, WorkerLost, WorkerStalled
from cluster.wire import role_to_wire
from protos.baton.v1 import kv_pb2, worker_pb2
from router.caller import Caller
from router.dispatch import Dispatch
from router.generation import Emission, GenerationRequest, Outcome
from router.handover_rules import HandoverRules
from tests.router.dispatch_parts import load_of, parts

PIPELINING_FROM = 10


class Bench:
    """A dispatch whose workers are names, whose clock is a number and whose frontend is a list of batches."""

    def __init__(self, **config: object) -> None:
        self.now = 0.0
        self.posted: list[tuple[str, worker_pb2.SessionRequest]] = []
        self.unreachable: set[str] = set()
        self.batches: list[list[Emission]] = []
        router = RouterConfig.model_validate(config)
        rules = HandoverRules(pipelining_from=PIPELINING_FROM)
        self.parts = parts(lambda: self.now, rules)
        self.dispatch = Dispatch(router, self.post, lambda: self.now, self.parts)
        self.dispatch.connect(self)

    def post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        self.posted.append((worker_id, message))
        return worker_id not in self.unreachable

    def deliver(self, emissions: Sequence[Emission]) -> None:
        self.batches.append(list(emissions))

    def up(self, *worker_ids: str) -> None:
        for worker_id in worker_ids:
            role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
            self.dispatch.worker_up(describe(worker_id, role))

    def lose(self, *worker_ids: str) -> None:
        for worker_id in worker_ids:
            self.dispatch.worker_down(worker_id, WorkerLost("gone"))

    def ask(self, request_id: str, max_tokens: int = 3, prompt: Sequence[int] = (1, 2, 3)) -> worker_pb2.Submit:
        self.dispatch.submit(GenerationRequest(request_id, list(prompt), Sampling(max_tokens)))
        return self.submits[-1]

    @property
    def submits(self) -> list[worker_pb2.Submit]:
        return [message.submit for _, message in self.posted if message.HasField("submit")]

    @property
    def aborted(self) -> list[str]:
        return [id_ for _, message in self.posted for id_ in message.abort.attempt_ids]

    @property
    def released(self) -> list[str]:
        return [message.release.lease_id for _, message in self.posted if message.HasField("release")]

    @property
    def emissions(self) -> list[Emission]:
        return [emission for batch in self.batches for emission in batch]

    def retry(self) -> None:
        """The wait of the next retry is over."""
        assert self.dispatch.next_retry_at is not None
        self.now = self.dispatch.next_retry_at
        self.dispatch.on_time()

    def step(self, worker_id: str, *outputs: worker_pb2.Output) -> None:
        self.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=outputs, load=worker_pb2.Load(running=1)))


def describe(worker_id: str, role: Role) -> worker_pb2.WorkerDescription:
    source = f"source-of-{worker_id}:1"
    return worker_pb2.WorkerDescription(worker_id=worker_id, role=role_to_wire(role), source=source, epoch=5)


def output(submit: worker_pb2.Submit, token: int, last: bool = False, lease: str = "") -> worker_pb2.Output:
    reason = worker_pb2.FINISH_REASON_LENGTH if last else worker_pb2.FINISH_REASON_UNSPECIFIED
    ticket = kv_pb2.Ticket(lease_id=lease).SerializeToString() if lease else b""
    return worker_pb2.Output(attempt_id=submit.attempt_id, token_ids=[token], finish_reason=reason, ticket=ticket)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(max_in_flight=3, request_deadline_s=60.0, prefill_deadline_s=10.0)
    bench.up("p1", "p2", "d1")
    yield bench
    bench.dispatch.check_integrity()


def test_outputs_of_one_step_reach_the_frontend_as_one_batch(bench: Bench) -> None:
    first, second = bench.ask("a"), bench.ask("b")
    bench.step("p1", output(first, 10, last=True, lease="l1"), output(second, 20, last=True, lease="l2"))
    assert [[(e.request_id, e.token_ids) for e in batch] for batch in bench.batches] == [[("a", [10]), ("b", [20])]]
    assert [submit.leg for submit in bench.submits[2:]] == [worker_pb2.LEG_DECODE] * 2


def test_two_requests_at_once_go_to_two_prefill_workers(bench: Bench) -> None:
    bench.ask("a")
    bench.ask("b")
    assert {worker_id for worker_id, _ in bench.posted} == {"p1", "p2"}


def test_a_finished_request_leaves_nothing_but_its_counts(bench: Bench) -> None:
    prefill = bench.ask("a")
    bench.step(bench.posted[-1][0], output(prefill, 10, last=True, lease="l1"))
    bench.step("d1", output(bench.submits[-1], 11))
    bench.step("d1", output(bench.submits[-1], 12, last=True))
    counters = bench.dispatch.counters()
    assert dict(counters.requests_by_outcome) == {"completed": 1}
    assert (counters.in_flight, counters.disaggregated, counters.whole) == (0, 1, 0)
    assert bench.emissions[-1].finish_reason is FinishReason.LENGTH
    assert all(worker.idle for worker in bench.dispatch.view)


def test_a_whole_request_is_counted_as_such(bench: Bench) -> None:
    whole = bench.ask("a", max_tokens=1)
    bench.step(bench.posted[-1][0], output(whole, 10, last=True))
    assert (bench.dispatch.counters().disaggregated, bench.dispatch.counters().whole) == (0, 1)


def test_a_prompt_counts_as_queued_until_its_worker_has_answered(bench: Bench) -> None:
    bench.lose("p1", "p2")
    whole = bench.ask("a")
    assert load_of(bench.parts, "d1").prefill_tokens == 3
    bench.step("d1", output(whole, 10))
    assert load_of(bench.parts, "d1").prefill_tokens == 0
    worker = bench.dispatch.view.get("d1")
    assert worker is not None
    assert not worker.idle


def test_a_worker_that_goes_takes_its_attempts_with_it_and_they_move_on(bench: Bench) -> None:
    bench.ask("a")
    lost = bench.posted[-1][0]
    bench.dispatch.worker_down(lost, WorkerLost("gone"))
    assert bench.posted[-1][0] == ({"p1", "p2"} - {lost}).pop()
    assert bench.dispatch.view.get(lost) is None


def test_a_worker_that_cannot_be_reached_is_passed_over(bench: Bench) -> None:
    bench.unreachable = {"p1", "p2"}
    bench.ask("a")
    assert [worker_id for worker_id, _ in bench.posted][-1] == "d1"
    assert len(bench.posted) == 3


def test_without_workers_the_request_fails_and_the_error_is_delivered(bench: Bench) -> None:
    bench.lose("p1", "p2", "d1")
    bench.dispatch.submit(GenerationRequest("a", [1], Sampling(3)))
    assert isinstance(bench.emissions[-1].error, NoWorker)
    assert dict(bench.dispatch.counters().requests_by_outcome) == {"failed": 1}


def test_a_late_output_with_a_ticket_gives_the_lease_back(bench: Bench) -> None:
    prefill = bench.ask("a")
    worker_id = bench.posted[-1][0]
    bench.dispatch.cancel(["a"])
    assert bench.aborted == [prefill.attempt_id]
    bench.step(worker_id, output(prefill, 10, last=True, lease="l1"))
    assert bench.released == ["l1"]
    assert bench.emissions == []


def broken_ticket(submit: worker_pb2.Submit) -> worker_pb2.Output:
    reason = worker_pb2.FINISH_REASON_LENGTH
    return worker_pb2.Output(attempt_id=submit.attempt_id, token_ids=[1], finish_reason=reason, ticket=b"\xff\xff")


def test_a_ticket_that_cannot_be_read_is_its_workers_fault_and_the_request_goes_on(bench: Bench) -> None:
    first, second = bench.ask("a"), bench.ask("b")
    bench.step("p1", broken_ticket(first), output(second, 20, last=True, lease="l2"))
    assert [(e.request_id, e.token_ids, e.error) for e in bench.emissions] == [("b", [20], None)]
    assert bench.aborted == [first.attempt_id]
    bench.retry()
    assert (bench.submits[-1].leg, bench.submits[-1].attempt_id[:2]) == (worker_pb2.LEG_PREFILL, "a/")


def test_where_nobody_gives_a_ticket_that_can_be_read_it_is_not_the_clients_fault() -> None:
    bench = Bench()
    bench.up("p1")
    bench.step("p1", broken_ticket(bench.ask("a")))
    bench.retry()
    error = bench.emissions[-1].error
    assert isinstance(error, EngineFailed)
    assert "worker p1 gave an answer that makes no sense: a ticket that cannot be read" in str(error)


def test_a_stray_ticket_that_cannot_be_read_is_told_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    prefill = bench.ask("a")
    bench.dispatch.cancel(["a"])
    bench.step("p1", broken_ticket(prefill))
    assert f"worker p1, attempt {prefill.attempt_id}" in caplog.text
    assert bench.released == []


def test_an_unknown_finish_reason_counts_as_a_failed_attempt(bench: Bench) -> None:
    prefill = bench.ask("a")
    strange = worker_pb2.Output(attempt_id=prefill.attempt_id)
    strange.finish_reason = 77  # type: ignore[assignment]
    bench.step(bench.posted[-1][0], strange)
    assert bench.aborted == [prefill.attempt_id], "its worker may still be at it"
    bench.retry()
    assert len(bench.submits) == 2


def test_admission_needs_a_worker_that_takes_new_work(bench: Bench) -> None:
    for worker_id in ("p1", "p2", "d1"):
        bench.dispatch.set_ready(worker_id, False)
    with pytest.raises(NoWorker):
        bench.dispatch.admit()


def test_a_slow_prefill_is_made_again_elsewhere_when_its_time_is_over(bench: Bench) -> None:
    slow = bench.ask("a")
    bench.now = 9.9
    bench.dispatch.on_time()
    assert bench.aborted == []
    bench.now = 10.0
    bench.dispatch.on_time()
    assert bench.aborted == [slow.attempt_id]
    assert bench.submits[-1].leg == worker_pb2.LEG_PREFILL
    assert bench.submits[-1].attempt_id != slow.attempt_id


def test_a_request_past_its_deadline_ends_with_an_error_and_its_worker_hears_of_it(bench: Bench) -> None:
    prefill = bench.ask("a")
    bench.step(bench.posted[-1][0], output(prefill, 10, last=True, lease="l1"))
    bench.step("d1", output(bench.submits[-1], 11))
    bench.now = 60.0
    bench.dispatch.on_time()
    assert isinstance(bench.emissions[-1].error, DeadlineExceeded)
    assert bench.aborted == [bench.submits[-1].attempt_id]
    assert bench.dispatch.in_flight == 0


def test_a_request_whose_client_wants_it_sooner_ends_before_those_that_came_before_it(bench: Bench) -> None:
    bench.ask("patient")
    hurried = GenerationRequest("hurried", [4, 5, 6], Sampling(3), caller=Caller(deadline=5.0))
    bench.dispatch.submit(hurried)
    bench.now = 5.0
    bench.dispatch.on_time()
    assert [(e.request_id, type(e.error)) for e in bench.emissions] == [("hurried", DeadlineExceeded)]
    assert bench.dispatch.in_flight == 1


def test_what_the_frontend_stops_itself_counts_as_completed(bench: Bench) -> None:
    bench.ask("a")
    bench.dispatch.cancel(["a", "unknown"], Outcome.COMPLETED)
    assert dict(bench.dispatch.counters().requests_by_outcome) == {"completed": 1}


def test_the_frontend_may_cancel_from_within_a_delivery(bench: Bench) -> None:
    class Impatient:
        def deliver(self, emissions: Sequence[Emission]) -> None:
            bench.dispatch.cancel([emission.request_id for emission in emissions], Outcome.COMPLETED)

    bench.dispatch.connect(Impatient())
    prefill = bench.ask("a")
    bench.step(bench.posted[-1][0], output(prefill, 10, last=True, lease="l1"))
    assert bench.aborted == [bench.submits[-1].attempt_id]
    assert bench.released == ["l1"]
    assert bench.dispatch.in_flight == 0


def test_stopping_fails_everything_with_the_reason(bench: Bench) -> None:
    bench.ask("a")
    bench.ask("b")
    reason = EngineFailed("stopping")
    bench.dispatch.fail_all(reason)
    assert [emission.error for emission in bench.emissions] == [reason, reason]


def failed(submit: worker_pb2.Submit, why: str = "ERROR") -> worker_pb2.Output:
    reason = worker_pb2.FinishReason.Value(f"FINISH_REASON_{why}")
    return worker_pb2.Output(attempt_id=submit.attempt_id, finish_reason=reason, error="no")


def test_a_request_that_waits_for_its_retry_is_live_without_an_attempt(bench: Bench) -> None:
    first = bench.ask("a")
    bench.step(bench.posted[-1][0], failed(first))
    assert bench.submits == [first]
    assert bench.dispatch.in_flight == 1
    bench.dispatch.check_integrity()
    bench.dispatch.on_time()
    assert bench.submits == [first], "it is not time yet"
    bench.retry()
    assert len(bench.submits) == 2
    bench.step(bench.posted[-1][0], failed(bench.submits[-1]))
    bench.dispatch.cancel(["a"])
    assert bench.dispatch.next_retry_at is None


def test_what_moved_is_counted_by_why_and_prefetches_are_left_out(bench: Bench) -> None:
    bench.ask("a", prompt=LONG)
    prefetch = bench.submits[1]
    bench.step("d1", failed(prefetch))
    for why in ("MOVED", "LOST"):
        worker_id, message = [each for each in bench.posted if each[1].submit.leg != worker_pb2.LEG_PREFETCH][-1]
        bench.step(worker_id, failed(message.submit, why))
    bench.dispatch.set_ready("d1", False)
    bench.dispatch.move_off("d1", WorkerStalled("worker d1 is stalled"))
    bench.dispatch.move_off("nobody", WorkerStalled("worker nobody is stalled"))
    assert dict(bench.dispatch.counters().recoveries) == {"moved": 1, "lost": 1, "stalled": 1}


def test_a_stalled_worker_gets_nothing_new_and_hears_what_it_is_to_stop(bench: Bench) -> None:
    prefill = bench.ask("a")
    stalled = bench.posted[-1][0]
    bench.dispatch.set_ready(stalled, False)
    bench.dispatch.move_off(stalled, WorkerStalled(f"worker {stalled} is stalled"))
    assert bench.aborted == [prefill.attempt_id]
    assert bench.posted[-1][0] == ({"p1", "p2"} - {stalled}).pop()
    bench.dispatch.set_ready(stalled, True)
    assert bench.dispatch.view.get(stalled) is not None


def test_when_everything_fails_retries_run_out_and_the_client_hears_when_to_come_again() -> None:
    bench = Bench(retry_share=0.0, retry_floor_per_s=0.1)
    bench.up("p1", "p2", "d1")
    caller = Caller()
    for request_id in ("a", "b"):
        request = GenerationRequest(request_id, [1, 2, 3], Sampling(3), caller=caller)
        bench.dispatch.submit(request)
        bench.step(bench.posted[-1][0], failed(bench.submits[-1]))
    error = bench.emissions[-1].error
    assert isinstance(error, RetriesSpent)
    assert "failed the request: no" in str(error)
    assert caller.retry_after_s == 1
    counters = bench.dispatch.counters()
    assert (counters.retries_refused, dict(counters.requests_by_outcome)) == (1, {"failed": 1})
    bench.dispatch.cancel(["a"])
    bench.dispatch.check_integrity()


LONG = range(PIPELINING_FROM)


def test_a_long_prompt_is_prefetched_from_the_engine_that_computes_it(bench: Bench) -> None:
    prefetch = bench.ask("r", prompt=LONG)
    first = bench.submits[0]
    prefill_worker = bench.posted[0][0]
    assert (first.leg, prefetch.leg) == (worker_pb2.LEG_PREFILL, worker_pb2.LEG_PREFETCH)
    assert prefetch.follow == worker_pb2.PrefillInProgress(
        source=f"source-of-{prefill_worker}:1", epoch=5, attempt_id=first.attempt_id
    )
    bench.step(prefill_worker, output(first, 40, last=True, lease="lease"))
    decode = bench.submits[-1]
    assert (decode.leg, decode.after_attempt_id) == (worker_pb2.LEG_DECODE, prefetch.attempt_id)
    bench.step("d1", output(prefetch, 9, last=True), output(decode, 41))
    bench.step("d1", output(decode, 42, last=True))
    assert [token for emission in bench.emissions for token in emission.token_ids] == [40, 41, 42]
    assert bench.aborted == []


def test_a_short_prompt_and_an_engine_without_a_source_are_not_followed(bench: Bench) -> None:
    assert bench.ask("short").leg == worker_pb2.LEG_PREFILL
    for worker_id in ("p1", "p2"):
        worker = bench.dispatch.view.get(worker_id)
        assert worker is not None
        worker.source = ""
    assert bench.ask("long", prompt=LONG).leg == worker_pb2.LEG_PREFILL
    bench.dispatch.cancel(["short", "long"])


@pytest.mark.parametrize("unreachable", [["d1"], ["p1", "p2"], ["p1", "p2", "d1"]])
def test_a_worker_that_cannot_be_reached_leaves_no_prefetch_behind(bench: Bench, unreachable: list[str]) -> None:
    bench.unreachable = set(unreachable)
    bench.ask("r", prompt=LONG)
    bench.dispatch.check_integrity()
    bench.dispatch.cancel(["r"])
