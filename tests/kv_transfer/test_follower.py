"""Following a prompt against a real KvSource, with transports under the test's hand: every way in which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.engine import PrefillInProgress
from kv_transfer.climb import FallenRung
from kv_transfer.follower import Follower, FollowJob
from kv_transfer.growing_exports import Followed
from kv_transfer.mover import Mover, PullResult
from kv_transfer.source_client import SourceClient
from kv_transfer.ticket import unseal
from kv_transfer.ticket_writer import Prompt
from tests.kv_transfer.conftest import (
    BLOCK_BYTES,
    BLOCK_SIZE,
    EPOCH,
    SECRET,
    Fault,
    ScriptedTransport,
    Source,
    moving,
    rules,
)
from tests.waiting import eventually

ATTEMPT = "r/prefill1"
PROMPT = Prompt(list(range(5 * BLOCK_SIZE)))
WANTED = (50, 51, 52, 53)  # our blocks for all but the prompt's last one


@pytest.fixture
async def mover(fast: ScriptedTransport, slow: ScriptedTransport) -> AsyncIterator[Mover]:
    async with moving(fast, slow, rules(probe_s=0.2, read_s=0.2)) as made:
        yield made


@pytest.fixture
def follower(mover: Mover) -> Follower:
    return Follower(mover, SECRET, BLOCK_SIZE, idle_s=10.0)


def job(source: Source, prompt: Prompt = PROMPT, first: int = 0, epoch: int = EPOCH) -> FollowJob:
    origin = PrefillInProgress(source.server.address, epoch, ATTEMPT)
    return FollowJob("request", origin, prompt, first, WANTED[first:])


async def all_freed(source: Source, blocks: list[int]) -> None:
    await eventually(lambda: source.take_back() == blocks)
    source.growing.check_idle()


async def test_blocks_are_read_as_they_become_whole_and_completed_once(
    follower: Follower, fast: ScriptedTransport, source: Source
) -> None:
    following = asyncio.create_task(follower.follow(job(source)))
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    await eventually(lambda: follower.blocks_read == 2)
    assert source.growing.grow(ATTEMPT, (6,))
    await eventually(lambda: follower.blocks_read == 3)
    assert source.growing.grow(ATTEMPT, (7, 8))
    source.growing.close(ATTEMPT)
    result = await following
    assert (result.outcome, result.blocks, result.bytes, result.transport) == ("landed", 4, 4 * BLOCK_BYTES, "fast")
    assert [(read.source, read.target) for read in fast.reads] == [
        ((4, 5), (50, 51)),
        ((6,), (52,)),
        ((7,), (53,)),
    ]
    assert result.ahead in (3, 4), "the last ones may have been told before the end was"
    assert source.stats().blocks_sent == 4
    await all_freed(source, [4, 5, 6, 7, 8])


async def test_blocks_that_we_have_are_not_read_and_the_end_of_the_prompt_is_not_awaited(
    follower: Follower, fast: ScriptedTransport, source: Source
) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    following = asyncio.create_task(follower.follow(job(source, first=3)))
    source.growing.grow(ATTEMPT, (6, 7))
    result = await following
    assert (result.outcome, result.ahead) == ("landed", 1)
    assert [(read.source, read.target) for read in fast.reads] == [((7,), (53,))]
    assert not source.growing.grow(ATTEMPT, (8,)), "the lease has ended with its reader"


async def test_a_prompt_that_ends_too_early_is_given_up(follower: Follower, source: Source) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    following = asyncio.create_task(follower.follow(job(source)))
    await eventually(lambda: follower.blocks_read == 2)
    source.growing.close(ATTEMPT)
    result = await following
    assert (result.outcome, result.blocks, result.ahead) == ("failed", 0, 0)
    assert "ended before" in result.reason
    await all_freed(source, [4, 5])


async def test_an_attempt_that_never_shows_is_given_up_once_its_prompt_is_finished(
    follower: Follower, source: Source
) -> None:
    following = asyncio.create_task(follower.follow(job(source)))
    await eventually(lambda: source.service.calls.get("Follow", 0) >= 2)
    follower.prompt_done("request")
    result = await following
    assert (result.outcome, result.transport) == ("failed", "none")


async def test_a_prompt_that_makes_no_progress_is_given_up(mover: Mover, source: Source) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    result = await Follower(mover, SECRET, BLOCK_SIZE, idle_s=0.3).follow(job(source))
    assert result.outcome == "failed"
    assert "no progress for 0.3 s" in result.reason
    await all_freed(source, [4, 5])


async def test_a_cancelled_follower_gives_the_lease_back(follower: Follower, source: Source) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    following = asyncio.create_task(follower.follow(job(source)))
    await eventually(lambda: follower.blocks_read == 2)
    following.cancel()
    result = await following
    assert (result.outcome, result.reason) == ("cancelled", "aborted")
    await all_freed(source, [4, 5])
    assert follower.running == 0


async def test_one_that_is_left_before_it_began_leaves_nothing(follower: Follower, source: Source) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    wanted = job(source)
    follower.follow(wanted).close()
    follower.leave(wanted)
    await all_freed(source, [4, 5])
    assert follower.running == 0


async def test_a_lease_that_expires_while_it_is_followed_lands_nothing(follower: Follower, source: Source) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    following = asyncio.create_task(follower.follow(job(source)))
    await eventually(lambda: follower.blocks_read == 2)
    source.clock.time += 1000
    assert (await following).outcome == "stale"
    await all_freed(source, [4, 5])


async def test_another_epoch_and_another_prompt_are_refused(follower: Follower, source: Source) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5, 6, 7))
    assert (await follower.follow(job(source, epoch=EPOCH - 1))).outcome == "stale"
    result = await follower.follow(job(source, prompt=Prompt(list(range(1, 161)))))
    assert result.outcome == "refused"
    assert "for another prompt" in result.reason
    await all_freed(source, [4, 5, 6, 7])


async def test_a_transport_that_fails_half_way_is_counted_and_the_next_one_goes_on(
    follower: Follower, fast: ScriptedTransport, slow: ScriptedTransport, source: Source
) -> None:
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    following = asyncio.create_task(follower.follow(job(source)))
    await eventually(lambda: follower.blocks_read == 2)
    fast.read_fault = Fault.ERROR
    source.growing.grow(ATTEMPT, (6, 7))
    result = await following
    assert (result.outcome, result.transport, len(result.fallen)) == ("landed", "slow", 1)
    assert isinstance(result.fallen[0], FallenRung)
    assert slow.reads[-1].target == (52, 53)


@pytest.mark.parametrize("method", ["Follow", "Claim", "Complete", "Connect"])
async def test_a_source_that_fails_at_any_call_ends_the_prefetch(
    follower: Follower, source: Source, method: str
) -> None:
    source.service.faults[method, 1] = Fault.ERROR
    source.growing.open(ATTEMPT, PROMPT, (4, 5, 6, 7))
    result = await follower.follow(job(source))
    assert isinstance(result, PullResult)
    assert result.outcome == "failed"
    assert "as the test wants it" in result.reason


async def test_waiting_followers_do_not_keep_others_from_being_answered(source: Source) -> None:
    """KvSource has few threads; a follower waits in one of them."""
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    clients = [SourceClient(source.server.address, "decode-0/1", 5.0) for _ in range(8)]
    waiting = [asyncio.create_task(client.follow(ATTEMPT, EPOCH, 2)) for client in clients for _ in range(4)]
    ticket = source.offer()
    assert await clients[0].claim(ticket.lease_id, EPOCH) > 0
    told = await asyncio.gather(*waiting)
    for client in clients:
        await client.close()
    assert all(isinstance(followed, Followed) and not followed.closed for followed in told)


async def test_a_ticket_is_made_only_for_a_follower_who_does_not_know_of_all_blocks(source: Source) -> None:
    """Making one digests the whole prompt, and opening it does so again: not for every question."""
    source.growing.open(ATTEMPT, PROMPT, (4, 5))
    client = SourceClient(source.server.address, "decode-0/1", 5.0)
    news, none = await client.follow(ATTEMPT, EPOCH, 1), await client.follow(ATTEMPT, EPOCH, 2)
    await client.close()
    assert news is not None
    assert unseal(news.ticket, SECRET, BLOCK_SIZE).block_ids == (4, 5)
    assert none is not None
    assert (none.ticket, none.closed, none.held_s) == (b"", False, news.held_s)
