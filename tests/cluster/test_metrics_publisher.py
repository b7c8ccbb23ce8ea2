"""Metrics are told again and again, and what cannot be told ends nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest

from cluster import metrics_table as table
from cluster.clock import VirtualClock
from cluster.metrics import Sample
from cluster.metrics_publisher import publish_until_cancelled


class Told:
    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def put(self, sample: Sample) -> None:
        self.samples.append(sample)


async def test_a_failure_is_said_once_and_the_next_time_all_is_told(caplog: pytest.LogCaptureFixture) -> None:
    clock, told, broken = VirtualClock(), Told(), True

    async def collect() -> Iterable[Sample]:
        if broken:
            raise RuntimeError("no numbers today")
        return [Sample(table.DRAINS, ("r1",), 1.0)] * 100

    task = asyncio.create_task(publish_until_cancelled(collect, told, 10.0, clock))
    with caplog.at_level(logging.ERROR):
        await clock.advance(25.0)
    assert [record.message for record in caplog.records] == [
        "metrics cannot be told; trying again, and saying so no more"
    ]
    broken = False
    await clock.advance(10.0)
    assert len(told.samples) == 100
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
