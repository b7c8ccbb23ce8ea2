"""Pulls against a real KvSource with a transport under the test's hand: every way in which a pull can end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from kv_transfer.fingerprint import Fingerprint
from kv_transfer.mover import Deadlines, Mover, PullJob, PullResult
from kv_transfer.ticket import Ticket
from kv_transfer.transport import ReadState
from tests.kv_transfer.conftest import BLOCK_BYTES, EPOCH, FINGERPRINT, ScriptedTransport, Source


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport()


@pytest.fixture
async def mover(transport: ScriptedTransport) -> AsyncIterator[Mover]:
    made = Mover(transport, FINGERPRINT, "decode-0/1", 0, Deadlines(connect_s=2.0, read_s=0.2))
    yield made
    await made.close()


def job(ticket: Ticket, blocks: int = 3) -> PullJob:
    return PullJob("request", ticket, ticket.block_ids[-blocks:], tuple(range(50, 50 + blocks)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the mover under test runs on this very loop)
            await asyncio.sleep(0.001)


async def pull_and_release(mover: Mover, source: Source, pulled: PullJob) -> PullResult:
    """The result, once the source has heard of the pull's end."""
    result = await mover.pull(pulled)
    await asyncio.to_thread(source.ended.wait, 5)
    return result


async def test_a_pull_that_lands_completes_its_lease(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    result = await mover.pull(job(source.offer()))
    assert result == PullResult("request", "scripted", "landed", 3, 3 * BLOCK_BYTES)
    assert transport.started == [((4, 5, 6), (50, 51, 52))]
    assert transport.released == 1
    assert source.take_back() == [4, 5, 6]
    assert source.stats().blocks_sent == 3
    assert source.stats().bytes_sent == 3 * BLOCK_BYTES


async def test_many_pulls_from_one_source_connect_once(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    results = await asyncio.gather(*(mover.pull(job(source.offer())) for _ in range(8)))
    assert {result.outcome for result in results} == {"landed"}
    assert transport.connected == 1


async def test_a_lease_that_expired_while_it_was_read_makes_the_blocks_unusable(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    transport.state = ReadState.MOVING
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await until(lambda: transport.polls > 0)
    source.clock.time += 11.0
    transport.state = ReadState.DONE
    result = await pulling
    assert (result.outcome, result.blocks) == ("stale", 0)
    assert "expired" in result.reason
    assert source.stats().blocks_sent == 0


async def test_a_lost_lease_does_not_cost_the_connection(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    for _ in range(2):
        ticket = source.offer()
        source.book.release(ticket.lease_id)
        assert (await mover.pull(job(ticket))).outcome == "stale"
    assert (await mover.pull(job(source.offer()))).outcome == "landed"
    assert transport.connected == 1


async def test_a_ticket_of_an_epoch_that_is_over_is_stale_before_a_byte_moves(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    result = await mover.pull(job(replace(source.offer(), epoch=EPOCH - 1)))
    assert result.outcome == "stale"
    assert f"epoch {EPOCH - 1}, this engine's is {EPOCH}" in result.reason
    assert transport.started == []


async def test_engines_with_different_blocks_refuse_before_a_byte_moves(
    transport: ScriptedTransport, source: Source
) -> None:
    other = Fingerprint.of({"model": "m", "block_size": "16"})
    mover = Mover(transport, other, "decode-0/1", 0, Deadlines(2.0, 0.2))
    result = await pull_and_release(mover, source, job(source.offer()))
    assert result.outcome == "refused"
    assert "block_size: reader has 16, writer has 32" in result.reason
    assert transport.started == []
    assert source.take_back() == [4, 5, 6], "a lease that cannot be read must not wait for its end"
    await mover.close()


async def test_blocks_that_the_source_does_not_have_are_refused(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    result = await pull_and_release(mover, source, job(source.offer((4, 5, 100))))
    assert (result.outcome, transport.started) == ("refused", [])


async def test_a_read_past_its_deadline_fails_and_gives_the_lease_back(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    transport.state = ReadState.MOVING
    result = await pull_and_release(mover, source, job(source.offer()))
    assert result.outcome == "failed"
    assert "within 0.2 s" in result.reason
    assert transport.released == 1
    assert source.take_back() == [4, 5, 6]


@pytest.mark.parametrize("refuse_start", [True, False])
async def test_after_a_failed_read_the_next_pull_connects_anew(
    mover: Mover, transport: ScriptedTransport, source: Source, refuse_start: bool
) -> None:
    transport.state, transport.refuse_start = ReadState.FAILED, refuse_start
    assert (await mover.pull(job(source.offer()))).outcome == "failed"
    assert transport.disconnected == 1
    transport.state, transport.refuse_start = ReadState.DONE, False
    assert (await mover.pull(job(source.offer()))).outcome == "landed"
    assert transport.connected == 2


async def test_a_pull_does_not_end_while_bytes_may_still_arrive(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    transport.state, transport.quiet = ReadState.FAILED, False
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await until(lambda: transport.polls > 0)
    done, _ = await asyncio.wait({pulling}, timeout=0.1)
    assert not done
    transport.quiet = True
    assert (await pulling).outcome == "failed"


async def test_a_cancelled_pull_lets_go_of_its_read_and_of_the_lease(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    transport.state = ReadState.MOVING
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    await until(lambda: transport.polls > 0)
    pulling.cancel()
    assert (await pulling).outcome == "cancelled"
    assert transport.released == 1
    await asyncio.to_thread(source.ended.wait, 5)
    assert source.take_back() == [4, 5, 6]


async def test_a_long_read_renews_its_claim(transport: ScriptedTransport) -> None:
    source = Source(lease_s=0.3)
    mover = Mover(transport, FINGERPRINT, "decode-0/1", 0, Deadlines(2.0, 5.0))
    transport.state = ReadState.MOVING
    loop = asyncio.get_running_loop()
    started = loop.time()
    pulling = asyncio.create_task(mover.pull(job(source.offer())))
    while loop.time() < started + 0.6:  # twice the lease: here the source's clock follows the real one
        source.clock.time = loop.time() - started
        await asyncio.sleep(0.005)
    transport.state = ReadState.DONE
    assert (await pulling).outcome == "landed"
    await mover.close()
    source.server.close()


async def test_a_source_that_is_gone_fails_the_pull_at_once(mover: Mover, source: Source) -> None:
    ticket = source.offer()
    await asyncio.to_thread(source.server.close)
    result = await mover.pull(job(ticket))
    assert result.outcome == "failed"
    assert ticket.source in result.reason


async def test_a_source_that_does_not_answer_fails_every_waiting_pull_within_one_deadline(
    transport: ScriptedTransport, source: Source
) -> None:
    mover = Mover(transport, FINGERPRINT, "decode-0/1", 0, Deadlines(connect_s=0.3, read_s=0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ticket = replace(source.offer(), source=f"127.0.0.1:{silent.getsockname()[1]}")
        async with asyncio.timeout(2.0):
            results = await asyncio.gather(*(mover.pull(job(ticket)) for _ in range(20)))
        assert {result.outcome for result in results} == {"failed"}
        await mover.close()


async def test_a_worker_that_came_back_gets_a_new_connection_and_the_old_one_is_dropped(
    mover: Mover, transport: ScriptedTransport, source: Source
) -> None:
    await mover.pull(job(source.offer()))
    again = Source(epoch=EPOCH + 1)
    assert (await mover.pull(job(again.offer()))).outcome == "landed"
    assert (transport.connected, transport.disconnected) == (2, 1)
    again.server.close()
