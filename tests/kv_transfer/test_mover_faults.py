"""Every wait of a pull, one after the other, meets an error, a stall or a cancellation: the pull ends within its
deadline with the right outcome, its lease ends at the source, and nothing is left here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from kv_transfer.mover import Mover, PullResult
from tests.kv_transfer.conftest import READER, Fault, ScriptedTransport, Source, job, rules
from tests.kv_transfer.soak import longest_pull_s
from tests.waiting import eventually

DEADLINE_S = 1.0  # of each wait
PATIENCE_S = 60.0  # the same, where no wait shall end by itself
AT_ONCE_S = 4.5  # bounds what waits for nothing, above what a machine stands still for
SILENT_S = 4.0  # how long a claim holds that nobody renews
CONTROL = {"connect": ("Connect", 1), "claim": ("Claim", 1), "renew": ("Claim", 2), "complete": ("Complete", 1)}
WAITS = ("connect", "claim", "probe", "first read", "second read", "renew", "complete")


@dataclass
class Stage:
    source: Source
    fast: ScriptedTransport
    slow: ScriptedTransport
    mover: Mover
    longest_s: float

    def set(self, wait: str, fault: Fault) -> None:
        if wait in CONTROL:
            self.source.service.faults[CONTROL[wait]] = fault
        if wait == "probe":
            self.fast.probe_fault = fault
        if wait == "first read":
            self.fast.read_fault = fault
        if wait == "second read":
            self.fast.read_fault, self.slow.read_fault = Fault.ERROR, fault
        if wait == "renew":
            self.fast.read_fault = Fault.STALL  # until there was something to renew

    async def reached(self, wait: str) -> None:
        await eventually(lambda: self._is_at(wait))

    def _is_at(self, wait: str) -> bool:
        at = {"probe": self.fast, "first read": self.fast, "second read": self.slow}.get(wait)
        return self.source.service.met.is_set() if at is None else at.at_work == 1 and self._reads(wait, at)

    def _reads(self, wait: str, transport: ScriptedTransport) -> bool:
        return wait == "probe" or bool(transport.reads)


@pytest.fixture
async def patient() -> AsyncIterator[Stage]:
    async with staged(PATIENCE_S) as made:
        yield made


@asynccontextmanager
async def staged(wait_s: float, lease_s: float = 1.2) -> AsyncIterator[Stage]:
    source = Source(lease_s=lease_s)
    fast, slow = ScriptedTransport("fast"), ScriptedTransport("slow")
    ladder = replace(rules(probe_s=wait_s, read_s=2 * wait_s), connect_s=wait_s)
    made = Stage(source, fast, slow, Mover([fast, slow], READER, ladder), longest_pull_s(ladder))
    try:
        yield made
        await made.mover.close()
    finally:
        source.close()
    made.mover.check_idle()
    for transport in (fast, slow):
        assert (transport.at_work, transport.connected - transport.disconnected, transport.closed) == (0, 0, True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("kv-")])


async def lease_ends(stage: Stage) -> None:
    """By the reader's word: the source's clock stands still, so no lease expires by itself."""
    await eventually(lambda: stage.source.stats().leases == 0)
    assert stage.source.take_back() == [4, 5, 6]


LANDED, FELL, FAILED = ("fast", "landed", 0), ("slow", "landed", 1), ("none", "failed", 0)
ENDS = {
    ("connect", Fault.ERROR): FAILED,
    ("connect", Fault.STALL): FAILED,
    ("claim", Fault.ERROR): FAILED,
    ("claim", Fault.STALL): FAILED,
    ("probe", Fault.ERROR): FELL,
    ("probe", Fault.STALL): FELL,
    ("first read", Fault.ERROR): FELL,
    ("first read", Fault.STALL): FELL,
    ("second read", Fault.ERROR): ("slow", "failed", 1),
    ("second read", Fault.STALL): ("slow", "failed", 1),
    ("complete", Fault.ERROR): ("fast", "failed", 0),
    ("complete", Fault.STALL): ("fast", "failed", 0),
}


def deadline_s(fault: Fault) -> float:
    """Of each wait: only a stall is to be waited for."""
    return DEADLINE_S if fault is Fault.STALL else PATIENCE_S


def told(result: PullResult) -> tuple[str, str, int]:
    return result.transport, result.outcome, len(result.fallen)


@pytest.mark.parametrize(("wait", "fault"), ENDS, ids=lambda value: str(getattr(value, "value", value)))
async def test_a_fault_at_any_wait_ends_the_pull_within_its_deadline(wait: str, fault: Fault) -> None:
    async with staged(deadline_s(fault)) as stage:
        stage.set(wait, fault)
        async with asyncio.timeout(stage.longest_s if fault is Fault.STALL else AT_ONCE_S):
            result = await stage.mover.pull(job(stage.source.offer()))
        assert told(result) == ENDS[wait, fault]
        assert (result.reason == "") == (result.outcome == "landed")
        stage.source.service.over.set()
        await lease_ends(stage)


@pytest.mark.parametrize("wait", WAITS)
async def test_a_cancellation_at_any_wait_ends_the_pull_at_once(patient: Stage, wait: str) -> None:
    patient.set(wait, Fault.STALL)
    pulling = asyncio.create_task(patient.mover.pull(job(patient.source.offer())))
    await patient.reached(wait)
    pulling.cancel()
    async with asyncio.timeout(AT_ONCE_S):
        result = await pulling
    assert result.outcome == "cancelled"
    patient.source.service.over.set()
    await lease_ends(patient)


async def test_a_renewal_that_is_refused_ends_the_read_and_makes_its_blocks_unusable(patient: Stage) -> None:
    patient.fast.read_fault = Fault.STALL
    ticket = patient.source.offer()
    pulling = asyncio.create_task(patient.mover.pull(job(ticket)))
    await eventually(lambda: bool(patient.fast.reads))
    patient.source.clock.time += 2.0
    async with asyncio.timeout(AT_ONCE_S):
        result = await pulling
    assert told(result) == ("fast", "stale", 0)
    assert (patient.fast.at_work, patient.slow.reads) == (0, [])
    await lease_ends(patient)


async def test_a_renewal_that_fails_once_is_tried_again() -> None:
    async with staged(PATIENCE_S, lease_s=2 * SILENT_S) as stage:
        stage.set("renew", Fault.ERROR)
        pulling = asyncio.create_task(stage.mover.pull(job(stage.source.offer())))
        await eventually(lambda: stage.source.service.calls.get("Claim", 0) == 3)
        stage.fast.read_fault = None
        assert told(await pulling) == LANDED
        await lease_ends(stage)


async def test_a_source_that_is_silent_while_it_is_read_costs_the_read_and_no_more() -> None:
    """Renewals are not answered until the claim is over: nobody vouches for the blocks any more."""
    async with staged(DEADLINE_S, lease_s=SILENT_S) as stage:
        stage.fast.read_fault = Fault.STALL
        mover = Mover([stage.fast], READER, replace(rules(read_s=PATIENCE_S), connect_s=SILENT_S))
        for call in range(2, 40):
            stage.source.service.faults["Claim", call] = Fault.ERROR
        try:
            async with asyncio.timeout(5 * SILENT_S):
                result = await mover.pull(job(stage.source.offer()))
            assert told(result) == ("fast", "stale", 0)
            assert "renewed" in result.reason
            stage.source.clock.time += 10.0
            await lease_ends(stage)
        finally:
            await mover.close()


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.STALL])
async def test_a_goodbye_that_is_not_heard_leaves_the_lease_to_its_end(fault: Fault) -> None:
    async with staged(deadline_s(fault)) as stage:
        stage.fast.read_fault = stage.slow.read_fault = Fault.ERROR
        stage.source.service.faults["Release", 1] = fault
        assert (await stage.mover.pull(job(stage.source.offer()))).outcome == "failed"
        await eventually(stage.source.service.met.is_set)
        await eventually(lambda: "farewells=0" in repr(stage.mover))
        assert stage.source.stats().leases == 1
        stage.source.clock.time += 10.0
        await lease_ends(stage)


async def test_a_transport_that_breaks_in_an_unknown_way_is_not_used_any_more(patient: Stage) -> None:
    async def broken(peer: str) -> None:
        raise ZeroDivisionError("a bug")

    patient.fast.probe = broken  # type: ignore[method-assign]
    result = await patient.mover.pull(job(patient.source.offer()))
    assert told(result) == FELL
    assert "a bug" in result.fallen[0].reason
    await lease_ends(patient)
