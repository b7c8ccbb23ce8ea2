"""Spans on their way out: nobody waits, a dead collector is said once, and everything is counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from cluster.errors import BatonError
from cluster.tracing import Span
from cluster.tracing_outbox import Outbox

SPAN = Span("request", "ab" * 16, "cd" * 8, "", 1.0, 2.0)
WAIT_S = 10.0


class Collector:
    """Calls wait while `open` is not set. `rejects`: so many spans of each."""

    def __init__(self) -> None:
        self.dead = False
        self.rejects = 0
        self.calls = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def __call__(self, spans: Sequence[Span]) -> int:
        self.calls.release()
        assert self.open.wait(WAIT_S)
        if self.dead:
            raise BatonError("nobody there")
        return self.rejects

    def wait(self) -> None:
        assert self.calls.acquire(timeout=WAIT_S)


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def outbox(collector: Collector) -> Iterator[Outbox]:
    made = Outbox(collector, "http://collector:4317", room=8, period_s=0.001)
    yield made
    collector.open.set()
    made.close(WAIT_S)
    made.close(WAIT_S)


def counted(outbox: Outbox, spans: int) -> dict[str, int]:
    """Waits until so many spans have an end."""
    give_up = time.monotonic() + WAIT_S
    while sum(outbox.counts.values()) < spans:
        assert time.monotonic() < give_up, outbox.counts
        threading.Event().wait(0.001)
    return dict(outbox.counts)


def test_a_dead_collector_is_said_once_and_once_that_it_is_back(
    outbox: Outbox, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.dead = True
    with caplog.at_level(logging.WARNING):
        for number in range(1, 4):
            outbox.send([SPAN])
            assert counted(outbox, number)["failed"] == number
        collector.dead = False
        outbox.send([SPAN, SPAN])
        assert counted(outbox, 5) == {"sent": 2, "failed": 3, "dropped": 0}
        outbox.close(WAIT_S)
    gone, back = [record.message for record in caplog.records]
    assert "do not reach http://collector:4317: nobody there" in gone
    assert "again" in back


def test_what_finds_no_room_is_dropped_and_nobody_waits(outbox: Outbox, collector: Collector) -> None:
    collector.open.clear()
    outbox.send([SPAN])
    collector.wait()  # its batch hangs in the collector from now on
    for _ in range(10):
        outbox.send([SPAN])
    assert outbox.counts == {"sent": 0, "failed": 0, "dropped": 2}
    collector.open.set()
    assert counted(outbox, 11) == {"sent": 9, "failed": 0, "dropped": 2}


def test_of_a_batch_only_what_was_rejected_has_failed(outbox: Outbox, collector: Collector) -> None:
    collector.rejects = 3
    outbox.send([SPAN] * 8)
    assert counted(outbox, 8) == {"sent": 5, "failed": 3, "dropped": 0}


def test_closing_sends_what_waits() -> None:
    collector = Collector()
    outbox = Outbox(collector, "c", period_s=WAIT_S)
    outbox.send([SPAN])
    outbox.close(WAIT_S)
    assert outbox.counts["sent"] == 1
    outbox.send([SPAN])
    assert outbox.counts["dropped"] == 1


def test_closing_does_not_wait_for_a_collector_that_hangs(outbox: Outbox, collector: Collector) -> None:
    collector.open.clear()
    outbox.send([SPAN])
    collector.wait()
    before = time.monotonic()
    outbox.close(0.05)
    assert time.monotonic() - before < WAIT_S / 2
