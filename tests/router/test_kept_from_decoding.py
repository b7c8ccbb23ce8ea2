"""`prefill_may_decode: false`: prefill workers give first tokens and no more, whatever becomes of decode workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import NoWorker, WorkerLost
from protos.baton.v1 import kv_pb2, worker_pb2
from tests.router.test_sleeping_pools import DECODE, PREFILL, Bench


class Stage(Bench):
    """Workers answer when they are told to, and give no more tokens than were asked for."""

    def __init__(self, prefill_may_decode: bool = False) -> None:
        super().__init__(prefill_may_decode)
        self.given: Counter[str] = Counter()

    @property
    def last(self) -> tuple[str, worker_pb2.Leg.ValueType]:
        worker_id, submit = self.submits[-1]
        return worker_id, submit.leg

    def answer(self, at: int, why: str = "") -> None:
        """The attempt that was sent at this place gives a token, or ends for that reason."""
        worker_id, submit = self.submits[at]
        output = worker_pb2.Output(attempt_id=submit.attempt_id)
        if why:
            output.finish_reason = worker_pb2.FinishReason.Value(f"FINISH_REASON_{why}")
        else:
            output.token_ids.append(7)
            self.given[submit.attempt_id] += 1
            if self.given[submit.attempt_id] >= submit.sampling.max_tokens:
                output.finish_reason = worker_pb2.FINISH_REASON_LENGTH
            if submit.leg == worker_pb2.LEG_PREFILL:
                output.ticket = kv_pb2.Ticket(lease_id=f"lease-{at}").SerializeToString()
        self.dispatch.on_step(worker_id, worker_pb2.StepOutputs(outputs=[output]))

    def settle(self) -> None:
        self.dispatch.check_integrity()
        self.dispatch.fail_all(NoWorker("the end"))
        self.dispatch.check_integrity()
        assert self.dispatch.in_flight == 0


@pytest.fixture
def bench() -> Iterator[Stage]:
    bench = Stage()
    bench.up("p1", PREFILL)
    yield bench
    bench.settle()


def test_without_a_decode_worker_nothing_is_taken_and_no_prompt_computed(bench: Stage) -> None:
    bench.begins = {PREFILL}
    assert not bench.dispatch.can_take
    with pytest.raises(NoWorker):
        bench.dispatch.admit()
    bench.ask("r")
    assert bench.submits == []
    assert isinstance(bench.errors[0], NoWorker)


def test_a_decode_pool_at_zero_is_waited_for_before_the_prompt_is_computed(bench: Stage) -> None:
    bench.begins = {DECODE}
    bench.ask("r")
    bench.pass_time(20.0)
    assert (bench.submits, bench.errors, bench.dispatch.counters().queued) == ([], [], 1)
    bench.up("d1", DECODE)
    bench.pass_time(0.25)
    assert bench.last == ("p1", worker_pb2.LEG_PREFILL)


def test_a_prompt_is_not_computed_again_for_nobody(bench: Stage) -> None:
    bench.begins = {DECODE}
    bench.up("p2", PREFILL)
    bench.up("d1", DECODE)
    bench.ask("r")
    bench.dispatch.worker_down("d1", WorkerLost("gone"))
    bench.answer(0, "ERROR")
    bench.pass_time(5.0)
    assert (len(bench.submits), bench.errors) == (1, [])
    bench.up("d2", DECODE)
    bench.pass_time(0.25)
    assert len(bench.submits) == 2


def test_the_only_token_is_still_given_by_a_prefill_worker(bench: Stage) -> None:
    bench.ask("r", max_tokens=1)
    assert bench.last == ("p1", worker_pb2.LEG_WHOLE)


def test_the_last_decode_worker_gets_hand_overs_though_it_has_failed_others(bench: Stage) -> None:
    bench.up("d1", DECODE)
    bench.parts.placing.placement.loads.close_until("d1", 1_000.0)
    bench.ask("r")
    bench.answer(0)
    assert bench.last == ("d1", worker_pb2.LEG_DECODE)


def test_prefill_workers_that_may_decode_take_whole_requests_in_one_leg() -> None:
    bench = Stage(prefill_may_decode=True)
    bench.up("p1", PREFILL)
    assert bench.dispatch.can_take
    bench.ask("r")
    assert bench.last == ("p1", worker_pb2.LEG_WHOLE)
    bench.settle()


_POOLS = {"p1": PREFILL, "p2": PREFILL, "d1": DECODE, "d2": DECODE}
_REASONS = ("", "", "", "ERROR", "MOVED", "LOST")
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("up", "down", "leave", "close")), st.sampled_from(sorted(_POOLS))),
        st.tuples(st.just("answer"), st.sampled_from(_REASONS)),
        st.tuples(st.just("ask"), st.sampled_from(("1", "2", "4"))),
        st.tuples(st.just("time"), st.sampled_from(("0.25", "5"))),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(steps=_STEPS, there=st.sets(st.sampled_from(sorted(_POOLS))), begins=st.booleans(), may_decode=st.booleans())
def test_whatever_comes_and_goes_no_whole_request_is_on_a_prefill_worker_and_no_prompt_in_vain(
    steps: list[tuple[str, str]], there: set[str], begins: bool, may_decode: bool
) -> None:
    bench = Stage(may_decode)
    for worker_id in sorted(there):
        bench.up(worker_id, _POOLS[worker_id])
    bench.begins = {PREFILL, DECODE} if begins else set()
    seen = 0
    for number, (step, what) in enumerate(steps):
        play(bench, number, step, what)
        for worker_id, submit in bench.submits[seen:]:
            if _POOLS[worker_id] is PREFILL and not may_decode:
                assert submit.leg == worker_pb2.LEG_PREFILL or submit.sampling.max_tokens == 1
            if submit.leg == worker_pb2.LEG_PREFILL:
                assert bench.dispatch.view.ready(DECODE), "nobody would go on with it"
        seen = len(bench.submits)
        bench.dispatch.check_integrity()
    bench.settle()


def play(bench: Stage, number: int, step: str, what: str) -> None:
    match step:
        case "up" if bench.dispatch.view.get(what) is None:
            bench.up(what, _POOLS[what])
        case "down":
            bench.dispatch.worker_down(what, WorkerLost("gone"))
        case "leave":
            bench.dispatch.set_ready(what, False)
        case "close":
            bench.parts.placing.placement.loads.close_until(what, bench.now + 10.0)
        case "answer" if bench.submits:
            bench.answer(number % len(bench.submits), what)
        case "ask":
            bench.ask(f"r{number}", max_tokens=int(what))
        case "time":
            bench.pass_time(float(what))
