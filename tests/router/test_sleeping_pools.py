"""Requests of a pool at zero are held until its workers have begun; those of a pool that is only broken are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from cluster.config import RouterConfig
from cluster.engine import Role, Sampling
from cluster.errors import NoWorker
from cluster.wire import role_to_wire
from protos.baton.v1 import kv_pb2, worker_pb2
from router.dispatch import Dispatch
from router.fleet_report import report_of
from router.generation import Emission, GenerationRequest
from tests.router.dispatch_parts import RETURN_S, parts

PREFILL, DECODE = Role.PREFILL, Role.DECODE


class Bench:
    """Workers are names, the clock is a number; `begins` are the pools that may be at zero. Prefill workers do not
    decode, unless they may."""

    def __init__(self, prefill_may_decode: bool = False) -> None:
        self.now = 0.0
        self.begins: set[Role] = set()
        self.submits: list[tuple[str, worker_pb2.Submit]] = []
        self.released: list[str] = []
        self.emissions: list[Emission] = []
        self.parts = parts(lambda: self.now, prefill_may_decode=prefill_may_decode)
        made = replace(self.parts, may_begin=lambda role: role in self.begins)
        config = RouterConfig(request_deadline_s=100.0, prefill_may_decode=prefill_may_decode)
        self.dispatch = Dispatch(config, self.post, lambda: self.now, made)
        self.dispatch.connect(self)

    def post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        if message.HasField("submit"):
            self.submits.append((worker_id, message.submit))
        if message.HasField("release"):
            self.released.append(message.release.lease_id)
        return True

    def deliver(self, emissions: Sequence[Emission]) -> None:
        self.emissions += emissions

    def up(self, worker_id: str, role: Role) -> None:
        description = worker_pb2.WorkerDescription(worker_id=worker_id, role=role_to_wire(role), num_blocks=100)
        self.dispatch.worker_up(description)

    def ask(self, request_id: str, prompt: int = 8, max_tokens: int = 4) -> None:
        first = 1_000 * len(self.submits) + 100 * self.dispatch.in_flight  # no prompt begins like another
        self.dispatch.submit(GenerationRequest(request_id, list(range(first, first + prompt)), Sampling(max_tokens)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.dispatch.on_time()

    def prefilled(self, lease_id: str) -> None:
        """The last one, whose decode worker is gone by then."""
        self.dispatch.worker_down("d1", NoWorker("gone"))
        worker_id, submit = self.submits[-1]
        output = worker_pb2.Output(
            attempt_id=submit.attempt_id,
            token_ids=[1],
            finish_reason=worker_pb2.FINISH_REASON_LENGTH,
            ticket=kv_pb2.Ticket(lease_id=lease_id).SerializeToString(),
        )
        self.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=[output]))

    @property
    def errors(self) -> list[object]:
        return [emission.error for emission in self.emissions if emission.error is not None]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.dispatch.check_integrity()
    bench.dispatch.fail_all(NoWorker("the end"))
    bench.dispatch.check_integrity()
    assert bench.dispatch.in_flight == 0


def test_a_pool_without_workers_that_does_not_begin_again_refuses(bench: Bench) -> None:
    assert not bench.dispatch.can_take
    with pytest.raises(NoWorker):
        bench.dispatch.admit()
    bench.ask("r")
    assert isinstance(bench.errors[0], NoWorker)


def test_requests_of_a_pool_at_zero_wait_for_its_first_worker_in_their_order(bench: Bench) -> None:
    bench.begins = {PREFILL, DECODE}
    bench.dispatch.admit()
    for request_id in ("r1", "r2"):
        bench.ask(request_id)
    bench.pass_time(30.0)
    assert (bench.errors, bench.submits, bench.dispatch.counters().queued) == ([], [], 2)
    bench.up("d1", DECODE)
    bench.pass_time(0.25)
    assert [(worker, submit.attempt_id.split("/")[0]) for worker, submit in bench.submits] == [
        ("d1", "r1"),
        ("d1", "r2"),
    ]


def test_a_router_that_waits_for_long_does_not_take_its_queue_for_a_slow_one(bench: Bench) -> None:
    bench.begins = {PREFILL, DECODE}
    for at in range(200):
        bench.ask(f"early{at}", prompt=1_000)
    for _ in range(200):
        bench.pass_time(0.25)
    bench.ask("late", prompt=1_000)
    assert bench.errors == []


def test_a_hand_over_to_a_pool_at_zero_waits_and_gives_its_blocks_back(bench: Bench) -> None:
    bench.begins = {DECODE}
    bench.up("p1", PREFILL)
    bench.up("d1", DECODE)
    bench.ask("r")
    bench.prefilled("lease-1")
    assert (bench.errors, bench.released) == ([], ["lease-1"])
    bench.pass_time(20.0)
    bench.up("d1", DECODE)
    bench.pass_time(1.0)
    worker_id, submit = bench.submits[-1]
    assert (worker_id, submit.leg) == ("d1", worker_pb2.LEG_WHOLE)
    assert bench.errors == []


def test_a_hand_over_to_a_pool_that_does_not_begin_again_fails(bench: Bench) -> None:
    bench.begins = {PREFILL}
    bench.up("p1", PREFILL)
    bench.up("d1", DECODE)
    bench.ask("r")
    bench.prefilled("lease-1")
    bench.pass_time(RETURN_S)
    assert isinstance(bench.errors[0], NoWorker)


def test_a_request_that_its_pool_cannot_do_does_not_wait_for_ever(bench: Bench) -> None:
    """There is a worker, only none that has not failed it."""
    bench.begins = {PREFILL, DECODE}
    bench.up("p1", PREFILL)
    bench.up("d1", DECODE)
    bench.ask("r")
    for _ in range(8):
        worker_id, submit = bench.submits[-1]
        failed = worker_pb2.Output(attempt_id=submit.attempt_id, finish_reason=worker_pb2.FINISH_REASON_ERROR)
        bench.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=[failed]))
        bench.pass_time(2.0)
    assert len(bench.errors) == 1


# What the autoscaler hears of it


def test_what_waits_is_reported_with_its_prompt_tokens_and_what_runs_as_in_flight(bench: Bench) -> None:
    bench.begins = {PREFILL, DECODE}
    bench.ask("r1", prompt=30)
    bench.ask("r2", prompt=50)
    report = report_of("router-1", bench.dispatch)
    assert (report.waiting_requests, report.waiting_tokens, report.in_flight) == (2, 80.0, 2)
    assert (report.arrived_requests, report.arrived_tokens) == (2, 80.0)
    bench.up("p1", PREFILL)
    bench.up("d1", DECODE)
    bench.pass_time(0.25)
    report = report_of("router-1", bench.dispatch)
    assert (report.waiting_requests, report.in_flight) == (0, 2)
    workers = {worker.worker_id: worker for worker in report.workers}
    assert workers["p1"].queued_tokens == 80.0
    assert workers["p1"].tokens_per_s > 0
    assert workers["d1"].ready
    assert workers["d1"].step_s > 0


def test_of_what_waits_only_the_tokens_are_reported_that_are_expected_to_be_computed(bench: Bench) -> None:
    for _ in range(200):
        bench.dispatch.placing.arrivals.placed(100, cached_tokens=75)
    bench.begins = {PREFILL, DECODE}
    bench.ask("r1", prompt=30)
    bench.ask("r2", prompt=50)
    report = report_of("router-1", bench.dispatch)
    assert report.waiting_tokens == pytest.approx(20.0, abs=0.1)
    assert report.arrived_tokens == pytest.approx(report.waiting_tokens)


def test_a_hand_over_that_waits_is_reported_as_waiting(bench: Bench) -> None:
    bench.begins = {DECODE}
    bench.up("p1", PREFILL)
    bench.up("d1", DECODE)
    bench.ask("r", prompt=30)
    bench.prefilled("lease-1")
    assert report_of("router-1", bench.dispatch).waiting_requests == 1


def test_a_worker_that_leaves_is_reported_as_not_ready_and_one_that_is_gone_not_at_all(bench: Bench) -> None:
    bench.up("d1", DECODE)
    bench.dispatch.set_ready("d1", False)
    assert [worker.ready for worker in report_of("router-1", bench.dispatch).workers] == [False]
    bench.dispatch.worker_down("d1", NoWorker("gone"))
    assert report_of("router-1", bench.dispatch).workers == ()
