"""Every worker that could go on with a stream is lost at once: it waits a while for one to come back."""

from __future__ import annotations

from cluster.errors import WorkerLost
from protos.baton.v1 import worker_pb2
from tests.router.dispatch_parts import RETURN_S
from tests.router.test_dispatch import Bench, bench, output

__all__ = ["bench"]


def test_a_stream_whose_workers_are_all_lost_at_once_goes_on_when_one_is_back(bench: Bench) -> None:
    """As after a pause of the router, in which no worker was heard."""
    prefill = bench.ask("a")
    bench.step(bench.posted[-1][0], output(prefill, 10, last=True, lease="l1"))
    bench.step("d1", output(bench.submits[-1], 11))
    bench.unreachable = {"d1", "p1", "p2"}  # all links are broken; the router hears of one after the other
    bench.lose("d1", "p1", "p2")
    assert bench.dispatch.counters().in_flight == 1
    bench.unreachable = set()
    bench.retry()
    assert bench.dispatch.next_retry_at is not None, "nobody is back yet"
    bench.up("d1")
    bench.retry()
    again = bench.submits[-1]
    assert (bench.posted[-1][0], again.leg) == ("d1", worker_pb2.LEG_WHOLE)
    assert list(again.prompt_token_ids)[-2:] == [10, 11]
    bench.step("d1", output(again, 12, last=True))
    assert [token for emission in bench.emissions for token in emission.token_ids] == [10, 11, 12]
    assert all(emission.error is None for emission in bench.emissions)


def test_a_stream_whose_workers_do_not_come_back_hears_in_time_why_it_ends(bench: Bench) -> None:
    bench.ask("a")
    bench.lose("d1", "p1", "p2")
    lost_at = bench.now
    while not bench.emissions:
        assert bench.now - lost_at <= RETURN_S
        bench.retry()
    assert isinstance(bench.emissions[-1].error, WorkerLost)
    assert bench.now - lost_at >= RETURN_S
    assert bench.dispatch.counters().in_flight == 0
