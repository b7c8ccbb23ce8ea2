"""What is told of a worker that answers, and of one that does not."""

from __future__ import annotations

import pytest

from cluster.engine import Role
from cluster.errors import WorkerLost
from cluster.membership import WorkerRecord
from protos.baton.v1 import worker_pb2 as pb
from router.fleet_reports import FleetReports

RECORD = WorkerRecord("w", Role.DECODE, 7, "host:1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


def description(state: pb.WorkerState.ValueType = pb.WORKER_STATE_READY, clock: float = 0.0) -> pb.WorkerDescription:
    return pb.WorkerDescription(worker_id="w", epoch=7, state=state, clock_unix_s=clock, load=pb.Load(running=3))


async def answers() -> pb.WorkerDescription:
    return description(clock=101.5)


async def silent() -> pb.WorkerDescription:
    raise WorkerLost("no answer within 0.5 s")


async def test_a_silent_worker_shows_what_it_said_last_with_its_age() -> None:
    clock = Clock()
    reports = FleetReports(lambda: clock.now)
    reports.joined(description())
    clock.now += 2.0
    reports.heard("w")
    reports.load_changed("w", pb.Load(running=9))
    clock.now += 3.0
    report = await reports.ask(RECORD, silent, linked=True)
    assert report.description is not None
    assert (report.description.load.running, report.age_s, report.heard_s) == (9, 5.0, 3.0)
    assert report.unreachable == "no answer within 0.5 s"
    assert report.ready, "it is only slow to describe itself"
    assert not (await reports.ask(RECORD, silent, linked=False)).ready


async def test_a_worker_of_another_epoch_is_not_taken_for_it() -> None:
    reports = FleetReports(lambda: 0.0)
    reports.joined(description())
    newer = WorkerRecord("w", Role.DECODE, 8, "host:1")
    assert (await reports.ask(newer, silent, linked=True)).description is None


async def test_an_answer_is_fresh_and_tells_how_far_its_clock_is_ahead() -> None:
    clock = Clock()
    reports = FleetReports(lambda: clock.now, lambda: 100.0)  # the call takes no time
    unknown = await reports.ask(RECORD, answers, linked=False)
    assert (unknown.heard_s, unknown.clock_ahead_s, unknown.age_s) == (None, 1.5, 0.0)
    reports.joined(description())
    clock.now += 4.0
    known = await reports.ask(RECORD, answers, linked=True)
    assert (known.heard_s, known.age_s) == (4.0, 0.0), "an answer is no word of its own"


@pytest.mark.parametrize(("took_s", "ahead_s"), [(0.5, 1.0), (4.0, 0.0)])
async def test_a_call_that_takes_long_proves_no_clock_wrong(took_s: float, ahead_s: float) -> None:
    """As when the router stands still before it sees the answer."""
    moments = iter([100.0, 100.0 + took_s])
    report = await FleetReports(lambda: 0.0, lambda: next(moments)).ask(RECORD, answers, linked=True)
    assert report.clock_ahead_s == ahead_s


async def test_a_clock_that_is_behind_is_told_as_such() -> None:
    moments = iter([110.0, 110.5])
    report = await FleetReports(lambda: 0.0, lambda: next(moments)).ask(RECORD, answers, linked=True)
    assert report.clock_ahead_s == -8.5


def test_only_another_state_is_news() -> None:
    reports = FleetReports(lambda: 0.0)
    reports.joined(description())
    assert not reports.state_changed("w", pb.WORKER_STATE_READY, "")
    assert reports.state_changed("w", pb.WORKER_STATE_STALLED, "no step")
    last = reports.last("w")
    assert last is not None
    assert (last.state, last.reason) == (pb.WORKER_STATE_STALLED, "no step")
    reports.forget("w")
    assert reports.last("w") is None
