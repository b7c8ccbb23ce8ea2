"""Pulls against a real KvSource with transports under the test's hand: every way in which a pull can end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kv_transfer.climb import FallenRung
from kv_transfer.connections import Reader
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.mover import Mover, PullJob, PullResult
from kv_transfer.transport import MOST_ANEW, BlockRead
from tests.kv_transfer.conftest import (
    BLOCK_BYTES,
    EPOCH,
    READER,
    Fault,
    ScriptedTransport,
    Source,
    job,
    moving,
    rules,
)
from tests.waiting import eventually

READ_S = 0.2


@pytest.fixture
async def mover(fast: ScriptedTransport, slow: ScriptedTransport) -> AsyncIterator[Mover]:
    async with moving(fast, slow, rules(probe_s=READ_S, read_s=READ_S)) as made:
        yield made


async def pull_and_release(mover: Mover, source: Source, pulled: PullJob) -> PullResult:
    """The result, once the source has heard of the pull's end."""
    result = await mover.pull(pulled)
    assert await asyncio.to_thread(source.ended.wait, 5)
    return result


async def test_a_pull_that_lands_completes_its_lease(mover: Mover, fast: ScriptedTransport, source: Source) -> None:
    pulled = job(source.offer())
    assert await mover.pull(pulled) == PullResult("request", "fast", "landed", 3, 3 * BLOCK_BYTES)
    assert fast.reads == [BlockRead(pulled.sealed, (4, 5, 6), (50, 51, 52))]
    assert source.take_back() == [4, 5, 6]
    assert (source.stats().blocks_sent, source.stats().bytes_sent) == (3, 3 * BLOCK_BYTES)


async def test_many_pulls_from_one_source_connect_and_probe_once(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    results = await asyncio.gather(*(mover.pull(job(source.offer())) for _ in range(8)))
    assert {result.outcome for result in results} == {"landed"}
    assert (source.service.calls["Connect"], fast.connected, fast.probes, slow.connected) == (1, 1, 1, 0)


async def test_a_read_that_fails_goes_on_over_the_next_transport_into_the_same_blocks(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.ERROR
    result = await mover.pull(job(source.offer()))
    assert (result.transport, result.outcome, result.blocks) == ("slow", "landed", 3)
    assert result.fallen == (FallenRung("fast", "as the test wants it"),)
    assert [(rung.transport, rung.outcome, rung.blocks) for rung in result.rungs] == [
        ("fast", "failed", 0),
        (result.transport, "landed", result.blocks),
    ]
    assert fast.reads == slow.reads
    assert source.service.calls["Claim"] == 1
    assert source.take_back() == [4, 5, 6]


async def test_when_every_transport_fails_the_last_one_is_told_and_the_lease_given_back(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    fast.read_fault, slow.read_fault = Fault.ERROR, Fault.STALL
    result = await pull_and_release(mover, source, job(source.offer()))
    assert (result.transport, result.outcome, [rung.transport for rung in result.fallen]) == (
        "slow", "failed", ["fast"],
    )  # fmt: skip
    assert "within 0.2 s" in result.reason
    assert source.take_back() == [4, 5, 6]


async def test_a_peer_without_room_costs_this_pull_its_transport_and_no_other(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.BUSY
    result = await mover.pull(job(source.offer()))
    assert (result.transport, [rung.reason for rung in result.fallen]) == ("slow", ["there is no room"])
    fast.read_fault = None
    assert (await mover.pull(job(source.offer()))).transport == "fast"
    assert fast.connected == 1


async def test_waiting_for_our_own_other_reads_is_not_held_against_the_peer(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.turns = asyncio.Semaphore(1)
    async with fast.turn():
        result = await mover.pull(job(source.offer()))
    assert (result.transport, fast.reads) == ("slow", [])
    assert "no turn to read" in result.fallen[0].reason
    assert (await mover.pull(job(source.offer()))).transport == "fast"


async def test_a_read_that_is_interrupted_again_and_again_costs_this_pull_its_transport_and_no_other(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.INTERRUPTED
    result = await mover.pull(job(source.offer()))
    assert (result.transport, len(fast.reads)) == ("slow", 1 + MOST_ANEW)
    fast.read_fault = None
    assert (await mover.pull(job(source.offer()))).transport == "fast"


async def test_a_probe_that_others_interrupt_begins_anew(mover: Mover, fast: ScriptedTransport, source: Source) -> None:
    fast.probe_fault = Fault.INTERRUPTED
    assert (await mover.pull(job(source.offer()))).transport == "slow"
    assert fast.probes == 1 + MOST_ANEW
    fast.probe_fault = None
    assert (await mover.pull(job(source.offer()))).transport == "fast"


async def test_a_lease_that_expired_while_it_was_read_makes_the_blocks_unusable(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.STALL
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: bool(fast.reads))
    source.clock.time += 11.0
    fast.read_fault = None
    result = await pulling
    assert (result.transport, result.outcome, result.blocks, slow.reads) == ("fast", "stale", 0, [])
    assert "expired" in result.reason
    assert source.stats().blocks_sent == 0


async def test_a_lost_lease_costs_neither_the_connection_nor_the_transport(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    for _ in range(2):
        ticket = source.offer()
        source.book.release(ticket.lease_id)
        result = await mover.pull(job(ticket))
        assert (result.transport, result.outcome) == ("none", "stale")
    assert (await mover.pull(job(source.offer()))).transport == "fast"
    assert source.service.calls["Connect"] == 1


async def test_a_ticket_of_an_epoch_that_is_over_is_stale_before_a_byte_moves(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    result = await mover.pull(job(replace(source.offer(), epoch=EPOCH - 1)))
    assert result.outcome == "stale"
    assert f"epoch {EPOCH - 1}, this engine's is {EPOCH}" in result.reason
    assert fast.reads == []


async def test_engines_with_different_blocks_refuse_before_a_byte_moves(
    fast: ScriptedTransport, source: Source
) -> None:
    other = Reader("decode-0/1", 0, Fingerprint.of({"model": "m", "block_size": "16"}), BLOCK_BYTES)
    mover = Mover([fast], other, rules())
    result = await pull_and_release(mover, source, job(source.offer()))
    assert result.outcome == "refused"
    assert "block_size: reader has 16, writer has 32" in result.reason
    assert (fast.probes, fast.reads) == (0, [])
    assert source.take_back() == [4, 5, 6], "a lease that cannot be read must not wait for its end"
    await mover.close()


async def test_blocks_that_the_source_does_not_have_are_refused(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    result = await pull_and_release(mover, source, job(source.offer((4, 5, 100))))
    assert (result.outcome, fast.reads) == ("refused", [])


async def test_a_cancelled_pull_lets_go_of_its_read_and_of_the_lease(
    mover: Mover, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    fast.read_fault = Fault.STALL
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: fast.at_work == 1 and bool(fast.reads))
    pulling.cancel()
    result = await pulling
    assert (result.transport, result.outcome, slow.reads) == ("fast", "cancelled", [])
    assert await asyncio.to_thread(source.ended.wait, 5)
    assert source.take_back() == [4, 5, 6]


async def test_a_pull_that_is_cancelled_again_and_again_does_not_end_while_bytes_may_still_arrive(
    mover: Mover, fast: ScriptedTransport, source: Source
) -> None:
    fast.read_fault, fast.lingering = Fault.STALL, True
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await eventually(lambda: bool(fast.reads))
    for _ in range(3):
        pulling.cancel()
        done, _ = await asyncio.wait({pulling}, timeout=0.02)
        assert not done
    fast.lingering = False
    assert (await pulling).outcome == "cancelled"


async def test_a_source_that_is_gone_fails_the_pull_at_once(mover: Mover, source: Source) -> None:
    ticket = source.offer()
    await asyncio.to_thread(source.close)
    result = await mover.pull(job(ticket))
    assert (result.transport, result.outcome) == ("none", "failed")
    assert ticket.source in result.reason


async def test_a_source_that_does_not_answer_fails_every_waiting_pull_within_one_deadline(
    fast: ScriptedTransport, source: Source
) -> None:
    mover = Mover([fast], READER, replace(rules(), connect_s=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ticket = replace(source.offer(), source=f"127.0.0.1:{silent.getsockname()[1]}")
        async with asyncio.timeout(4.0):
            results = await asyncio.gather(*(mover.pull(job(ticket)) for _ in range(20)))
        assert {result.outcome for result in results} == {"failed"}
        await mover.close()


async def test_a_completion_that_was_heard_but_not_answered_ends_the_lease_once(mover: Mover, source: Source) -> None:
    """The engine may have taken the blocks already when the reader, who heard nothing, says goodbye."""
    ticket = source.offer()
    assert (await mover.pull(job(ticket))).outcome == "landed"
    mover.release(ticket)
    await eventually(lambda: source.service.calls.get("Release", 0) == 1)
    late = await mover.pull(job(ticket))
    assert (late.outcome, "already landed" in late.reason) == ("stale", True)
    assert source.take_back() == [4, 5, 6]
    assert source.stats().leases_released == 1
