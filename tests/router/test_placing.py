"""The router's choices over blocks that workers tell of: prefixes, queues, sessions, apart or not, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from cluster.block_hashes import chain_seed, extend_chain
from cluster.config import RouterConfig
from cluster.engine import Leg, Role, Sampling
from cluster.errors import WorkerLost, WorkerStalled
from cluster.store import NOTHING, Reserved
from cluster.wire import role_to_wire
from protos.baton.v1 import kv_pb2, worker_pb2
from router.dispatch import Dispatch
from router.generation import Emission, GenerationRequest
from router.journal_record import RequestRecord
from tests.router.dispatch_parts import BLOCK_TOKENS, MODEL, load_of, new_journal, parts

NUM_BLOCKS = 1_000
PROMPT = list(range(1_000, 1_000 + 100 * BLOCK_TOKENS))


class Bench:
    """Two workers a pool whose answers are written by the test; the clock moves by hand."""

    def __init__(self, **placement: Any) -> None:
        self.now = 0.0
        self.posted: list[tuple[str, worker_pb2.Submit]] = []
        self.journal = new_journal()
        self.parts = parts(lambda: self.now, journal=self.journal, **placement)
        self.dispatch = Dispatch(RouterConfig(), self.post, lambda: self.now, self.parts)
        self.dispatch.connect(self)
        for worker_id in ("p1", "p2", "d1", "d2"):
            self.up(worker_id)

    def deliver(self, emissions: Sequence[Emission]) -> None:
        """What clients get is other tests' business."""

    def up(self, worker_id: str) -> None:
        role = role_to_wire(Role.PREFILL if worker_id.startswith("p") else Role.DECODE)
        self.dispatch.worker_up(
            worker_pb2.WorkerDescription(worker_id=worker_id, role=role, num_blocks=NUM_BLOCKS, block_size=BLOCK_TOKENS)
        )

    def post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        if message.HasField("submit"):
            self.posted.append((worker_id, message.submit))
        return True

    def ask(self, request_id: str, prompt: list[int] = PROMPT, session: str = "", salt: str = "") -> str:
        """The worker that gets the first leg."""
        request = GenerationRequest(
            request_id, prompt, Sampling(20), cache_salt=salt, client_id=f"cmpl-{request_id}", session_id=session
        )
        self.dispatch.submit(request)
        return self.posted[-1][0]

    def answer(self, seconds: float, token: int, last: bool = False, cached: int = 0, pulled: int = 0) -> None:
        """By the attempt that was sent last."""
        self.now += seconds
        worker_id, submit = self.posted[-1]
        output = worker_pb2.Output(attempt_id=submit.attempt_id, token_ids=[token])
        prompt = len(submit.prompt_token_ids)
        output.origin.CopyFrom(
            worker_pb2.PromptOrigin(prompt_tokens=prompt, cached_tokens=cached, pulled_tokens=pulled)
        )
        if last:
            output.finish_reason = worker_pb2.FINISH_REASON_LENGTH
            if submit.leg == worker_pb2.LEG_PREFILL:
                output.ticket = kv_pb2.Ticket(lease_id="lease").SerializeToString()
        self.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=[output]))

    def fail(self) -> None:
        """The attempt that was sent last ends with an error, and its request is tried again."""
        worker_id, submit = self.posted[-1]
        output = worker_pb2.Output(
            attempt_id=submit.attempt_id, finish_reason=worker_pb2.FINISH_REASON_ERROR, error="broken"
        )
        self.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=[output]))
        if (retry_at := self.dispatch.next_retry_at) is not None:
            self.now = retry_at
            self.dispatch.on_time()

    def serve(
        self, request_id: str, prompt: list[int] = PROMPT, session: str = "", prefill_s: float = 0.1
    ) -> list[str]:
        """A request to its end; the workers that it went to."""
        before = len(self.posted)
        self.ask(request_id, prompt, session)
        if self.posted[-1][1].leg == worker_pb2.LEG_PREFILL:
            self.answer(prefill_s, 7, last=True)
        self.answer(0.05, 8)
        self.answer(0.01, 9, last=True)
        return [worker_id for worker_id, _ in self.posted[before:]]

    def holds(self, worker_id: str, prompt: list[int] = PROMPT) -> None:
        names = extend_chain(chain_seed(MODEL, "", ""), prompt, BLOCK_TOKENS)
        self.parts.placing.placement.index.blocks_stored(worker_id, names)

    def queued(self, worker_id: str, tokens: int, running: int = 0) -> None:
        self.dispatch.on_load(worker_id, worker_pb2.Load(queued_prefill_tokens=tokens, running=running))

    def record(self, request_id: str) -> RequestRecord:
        record = self.journal.find(f"cmpl-{request_id}")
        assert record is not None
        return record


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.dispatch.fail_all(WorkerLost("the test is over"))
    bench.dispatch.check_integrity()


@pytest.mark.parametrize("holder", ["p1", "p2"])
def test_a_prompt_goes_to_the_prefill_worker_that_says_it_holds_it(bench: Bench, holder: str) -> None:
    bench.holds(holder)
    assert bench.ask("a") == holder


@pytest.mark.parametrize("turn", range(6))
def test_a_second_request_follows_the_first_before_any_worker_has_said_a_word(bench: Bench, turn: int) -> None:
    prompt = [turn, *PROMPT]
    first = bench.serve("a", prompt)
    assert bench.serve("b", [*prompt, 1, 2, 3]) == first


def test_tenants_with_different_salts_do_not_share_blocks(bench: Bench) -> None:
    bench.holds("p1")
    bench.ask("salted", salt="tenant")
    assert bench.record("salted").cached_tokens_predicted == 0


def test_a_worker_that_fails_every_request_is_left_alone_and_tried_again_later(bench: Bench) -> None:
    def asked_of_p1(name: str, requests: int) -> int:
        """p1 looks idle each time, and fails whatever it gets."""
        asked = 0
        for number in range(requests):
            prompt = [number, *PROMPT]
            bench.queued("p2", 50_000)
            if bench.ask(f"{name}-{number}", prompt) == "p1":
                asked += 1
                bench.fail()
            assert bench.posted[-1][0] == "p2"
            bench.dispatch.cancel([f"{name}-{number}"])
        return asked

    assert asked_of_p1("at first", 8) == 3
    bench.now += 1.0
    assert asked_of_p1("later", 8) == 1
    bench.now += 1.0
    assert asked_of_p1("too soon", 3) == 0


def test_a_long_queue_beats_a_cached_prompt(bench: Bench) -> None:
    bench.holds("p1")
    bench.queued("p1", 50_000)
    assert bench.ask("a") == "p2"


def test_what_a_worker_no_longer_tells_does_not_count(bench: Bench) -> None:
    bench.holds("p1")
    bench.queued("p1", 100)
    assert bench.ask("held") == "p1"
    bench.dispatch.cancel(["held"])
    bench.parts.placing.placement.index.blocks_cleared("p1")
    assert bench.ask("by load") == "p2"


def test_a_worker_that_comes_back_has_nothing(bench: Bench) -> None:
    bench.holds("p1")
    bench.dispatch.worker_down("p1", WorkerLost("gone"))
    bench.up("p1")
    bench.queued("p1", 100)
    assert bench.ask("a") == "p2"


def test_equal_requests_at_once_do_not_go_to_one_worker(bench: Bench) -> None:
    assert {bench.ask(f"r{number}", [number, *PROMPT]) for number in range(8)} == {"p1", "p2"}


def test_decode_goes_where_the_blocks_are(bench: Bench) -> None:
    bench.holds("d2")
    bench.ask("a")
    bench.answer(0.1, 7, last=True)
    assert (bench.posted[-1][0], bench.posted[-1][1].leg) == ("d2", worker_pb2.LEG_DECODE)


@pytest.mark.parametrize(
    ("mode", "busy", "leg"),
    [
        ("always", 0, Leg.PREFILL),
        ("never", 200, Leg.WHOLE),
        ("auto", 0, Leg.WHOLE),  # nothing runs there that it could hold up, and no block has to move
        ("auto", 200, Leg.PREFILL),
    ],
)
def test_disaggregation_is_decided_by_the_configuration_or_by_its_price(mode: str, busy: int, leg: Leg) -> None:
    bench = Bench(disaggregate=mode)
    for worker_id in ("d1", "d2"):
        bench.queued(worker_id, 0, running=busy)
    workers = bench.serve("a")
    record = bench.record("a")
    assert record.attempts[0].leg == leg.value
    assert workers[0].startswith("p" if leg is Leg.PREFILL else "d")
    assert ("disaggregate" in {decision.question for decision in record.decisions}) is (mode == "auto")
    counters = bench.dispatch.counters()
    assert (counters.disaggregated, counters.whole) == ((1, 0) if leg is Leg.PREFILL else (0, 1))
    bench.dispatch.check_integrity()


def test_a_whole_request_whose_decode_worker_breaks_is_tried_on_the_other_one() -> None:
    bench = Bench(disaggregate="never")
    first = bench.ask("a")
    bench.dispatch.worker_down(first, WorkerLost("gone"))
    assert bench.posted[-1][0] == ({"d1", "d2"} - {first}).pop()
    bench.dispatch.cancel(["a"])
    bench.dispatch.check_integrity()


def test_a_session_stays_where_it_was_at_little_more_cost(bench: Bench) -> None:
    short = PROMPT[: BLOCK_TOKENS - 1]  # no full block: only the session tells
    first = bench.serve("a", short, session="talk", prefill_s=0.0121)  # a little more than was predicted
    assert bench.serve("b", short, session="talk") == first
    assert bench.record("b").decisions[0].because.startswith("its session")


def test_load_is_reserved_from_the_decision_until_the_answer(bench: Bench) -> None:
    worker_id = bench.ask("a")
    assert load_of(bench.parts, worker_id).prefill_tokens == len(PROMPT)
    bench.answer(0.1, 7, last=True)
    assert load_of(bench.parts, worker_id).sequences == 0
    decode = bench.posted[-1][0]
    assert load_of(bench.parts, decode).sequences == 1
    bench.dispatch.cancel(["a"])
    assert load_of(bench.parts, decode).sequences == 0


class Told:
    """What other routers hear of this one."""

    def __init__(self) -> None:
        self.shares: dict[str, Reserved] = {}

    def reserve(self, worker_id: str, share: Reserved) -> None:
        self.shares[worker_id] = share

    def reserved_elsewhere(self, worker_id: str) -> Reserved:
        return NOTHING


def test_other_routers_hear_that_nothing_is_reserved_on_a_worker_that_is_lost() -> None:
    told = Told()
    bench = Bench(shared=told)
    worker_id = bench.ask("a")
    assert told.shares[worker_id] == Reserved(len(PROMPT), 1)
    bench.dispatch.worker_down(worker_id, WorkerLost(f"worker {worker_id} broke"))
    assert told.shares[worker_id] == NOTHING
    bench.dispatch.fail_all(WorkerLost("the test is over"))
    assert set(told.shares.values()) == {NOTHING}


def test_a_worker_that_refuses_at_once_is_not_taken_for_a_quick_one(bench: Bench) -> None:
    placing = bench.parts.placing
    row = placing.placement.loads.row(bench.ask("a"))
    assert row is not None
    before = placing.prompt_token_s(np.array([row])).item()
    bench.now += 0.001
    bench.fail()
    assert placing.prompt_token_s(np.array([row])).item() == before


def test_a_prompt_that_is_mostly_cached_makes_no_long_queue_though_its_worker_counts_all_of_it(bench: Bench) -> None:
    bench.holds("p1")
    assert bench.ask("a") == "p1"
    bench.queued("p1", len(PROMPT), running=1)
    assert load_of(bench.parts, "p1").prefill_tokens == BLOCK_TOKENS
    assert bench.ask("b") == "p1"


def test_a_prompt_is_predicted_to_wait_for_what_is_left_of_the_one_ahead(bench: Bench) -> None:
    bench.dispatch.worker_down("p2", WorkerLost("worker p2 left"))
    bench.ask("a")
    alone_s = 0.01 + 1e-4 * len(PROMPT)
    bench.now += 0.06
    bench.ask("b", [0, *PROMPT])
    assert bench.record("b").predicted.ttft_s == pytest.approx(2 * alone_s - 0.06, rel=0.01)


def test_predictions_come_to_what_really_happens(bench: Bench) -> None:
    for number in range(12):
        bench.ask(f"r{number}", [number, *PROMPT])
        bench.answer(0.8, 7, last=True)
        bench.answer(0.2, 8, pulled=len(PROMPT))
        for _ in range(10):
            bench.answer(0.04, 9)
        bench.answer(0.04, 9, last=True)
    record = bench.record("r11")
    assert record.actual.ttft_s == pytest.approx(0.8)
    assert record.predicted.ttft_s == pytest.approx(0.8, rel=0.1)
    assert record.actual.itl_s == pytest.approx((0.2 + 11 * 0.04) / 12)
    assert record.predicted.itl_s == pytest.approx(0.04, rel=0.2)
    transfer = next(d for d in record.decisions if d.question == "decode").candidates[0].terms["transfer"]
    assert transfer == pytest.approx(0.2, rel=0.3)


def test_the_journal_tells_candidates_attempts_and_how_they_ended(bench: Bench) -> None:
    bench.holds("p1")
    assert bench.ask("a", session="talk") == "p1"
    bench.dispatch.worker_down("p1", WorkerLost("worker p1 broke"))
    bench.answer(0.1, 7, last=True, cached=32)
    bench.answer(0.05, 8)
    bench.answer(0.05, 9, last=True)
    record = bench.record("a")
    assert (record.outcome, record.session_id, record.prompt_tokens) == ("completed", "talk", len(PROMPT))
    assert (record.cached_tokens_predicted, record.cached_tokens_actual) == (len(PROMPT) - BLOCK_TOKENS, 32)
    first = record.decisions[0]
    assert (first.question, first.chosen, first.runner_up) == ("prefill", "p1", "p2")
    assert [candidate.worker_id for candidate in first.candidates] == ["p1", "p2"]
    assert "tokens of the prompt" in first.because
    assert [(each.leg, each.worker_id, each.outcome) for each in record.attempts] == [
        ("prefill", "p1", "lost"),
        ("prefill", "p2", "completed"),
        ("decode", bench.posted[-1][0], "completed"),
    ]
    assert record.attempts[0].reason == "worker p1 broke"
    assert record.actual.ttft_s == pytest.approx(0.1)
    assert record.output_tokens == 3


def test_requests_that_a_client_knows_by_one_name_each_have_a_record(bench: Bench) -> None:
    for request_id in ("x-1", "x-2"):
        bench.dispatch.submit(GenerationRequest(request_id, PROMPT, Sampling(5), client_id="cmpl-x"))
    bench.dispatch.cancel(["x-1", "x-2"])
    assert [bench.journal.find(name) is not None for name in ("cmpl-x", "x-2")] == [True, True]


def test_a_worker_much_slower_than_its_pool_gets_nothing_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(slow={"least": 4, "leave_s": 20.0}, pick="round-robin")
    bench.up("p3")
    for number in range(24):
        bench.ask(f"{number}", [number, *PROMPT])
        bench.answer(3.0 if bench.posted[-1][0] == "p3" else 0.1, 7, last=True)
        bench.dispatch.cancel([f"{number}"])
        bench.dispatch.on_time()
    assert bench.dispatch.counters().slow_workers == 1
    assert "worker p3 is slow" in caplog.text
    assert "as long as elsewhere in its pool" in caplog.text
    before = bench.now
    assert {bench.ask(f"then-{number}", [number, *PROMPT]) for number in range(6)} == {"p1", "p2"}
    bench.now = before + 20.0
    assert {bench.ask(f"later-{number}", [number, *PROMPT]) for number in range(6)} == {"p1", "p2", "p3"}
    bench.dispatch.fail_all(WorkerLost("the test is over"))
    bench.dispatch.check_integrity()


def test_the_journal_has_a_line_with_its_reason_for_every_step_of_the_ladder(bench: Bench) -> None:
    def gives_up(why: worker_pb2.FinishReason.ValueType) -> None:
        worker_id, submit = bench.posted[-1]
        output = worker_pb2.Output(attempt_id=submit.attempt_id, finish_reason=why, error="as it said")
        bench.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=[output]))

    def stalls() -> None:
        worker_id, _ = bench.posted[-1]
        bench.dispatch.set_ready(worker_id, False)
        bench.dispatch.move_off(worker_id, WorkerStalled(f"worker {worker_id} is stalled: no step"))

    bench.up("p3")
    bench.ask("a")
    gives_up(worker_pb2.FINISH_REASON_MOVED)
    stalls()
    bench.fail()
    bench.answer(0.1, 8)
    gives_up(worker_pb2.FINISH_REASON_LOST)
    bench.answer(0.1, 9, last=True)
    record = bench.record("a")
    assert [(each.leg, each.outcome) for each in record.attempts] == [
        ("prefill", "moved"),
        ("prefill", "stalled"),
        ("prefill", "failed"),
        ("whole", "lost"),
        ("whole", "completed"),
    ]
    said = [each.reason for each in record.attempts]
    assert ["as it said" in said[0], "no step" in said[1], "broken" in said[2], "as it said" in said[3]] == [True] * 4
    assert record.outcome == "completed"
