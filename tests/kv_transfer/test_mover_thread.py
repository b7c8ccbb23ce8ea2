"""The mover's thread: jobs in, each result once, and nothing left when it closes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.errors import EngineFailed
from kv_transfer.mover import Deadlines, Mover, PullJob, PullResult
from kv_transfer.mover_thread import MoverThread
from kv_transfer.transport import ReadState
from tests.kv_transfer.conftest import FINGERPRINT, ScriptedTransport, Source


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
    return MoverThread(lambda: Mover(transport, FINGERPRINT, "decode-0/1", 0, Deadlines(2.0, 5.0)), serve)


def job(source: Source, request_id: str) -> PullJob:
    ticket = source.offer()
    return PullJob(request_id, ticket, ticket.block_ids, (7, 8, 9))


def collect(thread: MoverThread, count: int) -> list[PullResult]:
    results: list[PullResult] = []
    end = time.monotonic() + 5
    while len(results) < count:
        assert time.monotonic() < end, f"only {results}"
        results += thread.take_results()
        time.sleep(0.001)
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
    transport.state = ReadState.MOVING
    thread.pull(job(source, "a"))
    thread.cancel({"a", "of nobody"})
    assert [result.outcome for result in collect(thread, 1)] == ["cancelled"]
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


def test_closing_ends_pulls_in_progress(transport: ScriptedTransport, source: Source) -> None:
    transport.state = ReadState.MOVING
    thread = start(transport)
    thread.pull(job(source, "a"))
    end = time.monotonic() + 5
    while not transport.polls and time.monotonic() < end:
        time.sleep(0.001)
    thread.close()
    assert transport.released == 1
    thread.close()


def test_a_thread_that_died_is_noticed_instead_of_waited_for(transport: ScriptedTransport) -> None:
    def broken() -> None:
        raise RuntimeError("bug")

    thread = start(transport, broken)
    thread.serve_for(30.0)
    thread.join(5)
    with pytest.raises(EngineFailed, match="has died"):
        thread.take_results()
