"""The mover's thread: jobs in, each result once, and nothing left when it closes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.errors import EngineFailed
from kv_transfer.mover import Mover, PullJob, PullResult
from kv_transfer.mover_thread import MoverThread
from tests.kv_transfer import conftest
from tests.kv_transfer.conftest import READER, Fault, ScriptedTransport, Source, rules


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport()


@pytest.fixture
def thread(transport: ScriptedTransport) -> Iterator[MoverThread]:
    made = start(transport)
    yield made
    made.close()
    assert not [t for t in threading.enumerate() if t.name == "kv-mover"]


def start(transport: ScriptedTransport, serve: Callable[[], None] = lambda: None) -> MoverThread:
    return MoverThread(lambda: Mover([transport], READER, rules()), serve)


def job(source: Source, request_id: str) -> PullJob:
    return conftest.job(source.offer(), request_id=request_id)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def collect(thread: MoverThread, count: int) -> list[PullResult]:
    results: list[PullResult] = []

    def all_there() -> bool:
        results.extend(thread.take_results())
        return len(results) >= count

    wait_for(all_there)
    return results


def test_every_pull_is_reported_once(thread: MoverThread, source: Source) -> None:
    for number in range(5):
        thread.pull(job(source, str(number)))
    results = collect(thread, 5)
    assert sorted(result.request_id for result in results) == list("01234")
    assert {result.outcome for result in results} == {"landed"}
    assert thread.take_results() == []


def test_a_request_that_ends_takes_its_pull_with_it_even_before_it_began(
    thread: MoverThread, transport: ScriptedTransport, source: Source
) -> None:
    transport.read_fault = Fault.STALL
    thread.pull(job(source, "a"))
    thread.cancel({"a", "of nobody"})
    assert [result.outcome for result in collect(thread, 1)] == ["cancelled"]
    assert source.ended.wait(5)
    assert source.take_back() == [4, 5, 6]


def test_a_transport_that_breaks_in_an_unknown_way_fails_the_pull_and_gives_the_lease_back(
    thread: MoverThread, transport: ScriptedTransport, source: Source
) -> None:
    transport.reads = None  # type: ignore[assignment]
    thread.pull(job(source, "a"))
    assert [(result.transport, result.outcome) for result in collect(thread, 1)] == [("none", "failed")]
    assert source.ended.wait(5)
    assert source.take_back() == [4, 5, 6]


def test_a_ticket_that_is_not_needed_is_released(thread: MoverThread, source: Source) -> None:
    thread.release(source.offer())
    assert source.ended.wait(5)
    assert source.take_back() == [4, 5, 6]


def test_peers_are_served_only_while_that_was_ordered(transport: ScriptedTransport) -> None:
    served = threading.Event()
    thread = start(transport, served.set)
    assert not served.wait(0.05)
    thread.serve_for(30.0)
    assert served.wait(5)
    thread.serve_for(0.0)
    time.sleep(0.02)
    served.clear()
    assert not served.wait(0.05)
    thread.close()


def test_closing_ends_pulls_in_progress_and_closes_the_transports(transport: ScriptedTransport, source: Source) -> None:
    transport.read_fault = Fault.STALL
    thread = start(transport)
    thread.pull(job(source, "a"))
    wait_for(lambda: bool(transport.reads))
    thread.close()
    assert (transport.at_work, transport.connected - transport.disconnected, transport.closed) == (0, 0, True)
    thread.close()


def test_a_thread_that_died_is_noticed_instead_of_waited_for(transport: ScriptedTransport) -> None:
    def broken() -> None:
        raise RuntimeError("bug")

    thread = start(transport, broken)
    thread.serve_for(30.0)
    with pytest.raises(EngineFailed, match="has died"):
        wait_for(lambda: bool(thread.take_results()))
    thread.close()
