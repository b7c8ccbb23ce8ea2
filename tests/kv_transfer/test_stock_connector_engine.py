"""vLLM's own connector between real engines, float32: they say what one engine says, and blocks really move.

Whatever goes wrong ends in a recomputed prompt, and with every block free on both sides.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import zmq

from cluster.engine import FinishReason, Leg, Role
from protos.baton.v1 import kv_pb2 as pb
from tests.kv_transfer.driven_engine import Pair, count, prompt, started_engine, started_pair

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(480), pytest.mark.asyncio(loop_scope="module")]

LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 96, 300, 1000, 3000)
OUTPUT = 12
BLOCK = 32
LEASE_S = 8.0
TRANSFER = {"connector": "vllm-nixl", "lease_s": LEASE_S}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with started_pair(demo_model, tmp_path_factory.mktemp("engines"), kv_transfer=TRANSFER) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def pair(engines: Pair) -> AsyncIterator[Pair]:
    """Both engines; after every test nothing may be left in either."""
    yield engines
    await engines.quiet()


@pytest.mark.parametrize("length", LENGTHS)
async def test_two_engines_say_what_one_says_and_blocks_really_moved(pair: Pair, length: int) -> None:
    ids = prompt(length)
    before = await pair.decode.engine.stats()
    first = await pair.prefill.prefill(ids)
    assert first.ticket
    apart = await pair.decode.decode(ids, OUTPUT, first.ticket)
    prefill, decode = await pair.quiet()

    assert first.tokens + apart.tokens[1:] == apart.tokens == await pair.prefill.alone(ids, OUTPUT)
    moved, moved_before = count(decode, "nixl", "landed"), count(before, "nixl", "landed")
    blocks = -(-length // BLOCK)
    assert moved.bytes - moved_before.bytes == blocks * 2 * 4 * 4 * BLOCK * 32 * 4  # K and V, layers, heads, size, f32
    if length > 1:  # else the token is computed again all the same
        assert apart.origin.pulled_tokens == length
        assert (moved.count - moved_before.count, moved.blocks - moved_before.blocks) == (1, blocks)
    assert decode.recomputed_requests == before.recomputed_requests
    assert prefill.leases_offered == prefill.leases_released + prefill.leases_expired


async def test_many_requests_at_once_say_what_each_says_alone(pair: Pair) -> None:
    prompts = [prompt(length, seed=20) for length in LENGTHS]
    firsts = await asyncio.gather(*(pair.prefill.prefill(ids) for ids in prompts))
    rests = await asyncio.gather(
        *(pair.decode.decode(ids, OUTPUT, first.ticket) for ids, first in zip(prompts, firsts, strict=True))
    )
    assert [rest.origin.pulled_tokens for rest in rests if rest.origin.prompt_tokens > 1] == list(LENGTHS[1:])
    for ids, rest in zip(prompts, rests, strict=True):
        assert rest.tokens == await pair.prefill.alone(ids, OUTPUT)


async def test_only_blocks_that_decode_lacks_are_pulled(pair: Pair) -> None:
    shared, tail = prompt(4 * BLOCK, seed=2), prompt(70, seed=3)
    await pair.decode.whole(shared + prompt(40, seed=4), 1)
    before = await pair.decode.quiet()
    first = await pair.prefill.prefill([*shared, *tail])
    apart = await pair.decode.decode([*shared, *tail], OUTPUT, first.ticket)
    _, after = await pair.quiet()
    assert (apart.origin.cached_tokens, apart.origin.pulled_tokens) == (4 * BLOCK, 70)
    assert count(after, "nixl", "landed").blocks - count(before, "nixl", "landed").blocks == 3
    assert apart.tokens == await pair.prefill.alone([*shared, *tail], OUTPUT)


@pytest.mark.parametrize("damage", ["a flipped bit", "garbage", "another prompt's", "none"])
async def test_a_bad_ticket_is_refused_and_the_prompt_computed(pair: Pair, damage: str) -> None:
    ids = prompt(200, seed=len(damage))
    first = await pair.prefill.prefill(ids)
    other_ids = prompt(200, seed=5)
    other = await pair.prefill.prefill(other_ids)
    ticket = {
        "a flipped bit": first.ticket[:200] + bytes([first.ticket[200] ^ 1]) + first.ticket[201:],
        "garbage": b"\xff" * 40,
        "another prompt's": other.ticket,
        "none": b"",
    }[damage]
    before = await pair.decode.engine.stats()
    apart = await pair.decode.decode(ids, OUTPUT, ticket)
    after = await pair.decode.engine.stats()
    assert apart.tokens == await pair.prefill.alone(ids, OUTPUT)
    assert apart.origin.pulled_tokens == 0
    assert count(after, "none", "refused").count == count(before, "none", "refused").count + 1
    assert after.recomputed_requests == before.recomputed_requests + 1
    assert count(after, "nixl", "landed") == count(before, "nixl", "landed")
    for good in (first, other):  # nobody has touched their blocks
        assert (await pair.decode.decode(ids if good is first else other_ids, 1, good.ticket)).origin.pulled_tokens


async def test_blocks_that_nobody_reads_are_held_until_the_lease_ends_and_then_not_read(pair: Pair) -> None:
    ids = prompt(300, seed=6)
    before, _ = await pair.quiet()
    first = await pair.prefill.prefill(ids)
    held = await pair.prefill.engine.stats()
    assert (held.leases, held.kv_usage > 0) == (1, True)
    after = await pair.prefill.quiet()
    assert after.leases_expired == before.leases_expired + 1
    apart = await pair.decode.decode(ids, 2, first.ticket)
    assert apart.origin.pulled_tokens == 0
    assert count(await pair.decode.quiet(), "none", "stale").count == 1


async def test_a_request_aborted_while_its_blocks_are_on_the_way_leaves_nothing(pair: Pair) -> None:
    for seed in range(10, 20):
        first = await pair.prefill.prefill(prompt(1000, seed))
        attempt_id = await pair.decode.submit(Leg.DECODE, prompt(1000, seed), 4, first.ticket)
        await pair.decode.engine.abort([attempt_id])
    await pair.quiet()
    assert (await pair.decode.whole(prompt(40), 4)).finish_reason is FinishReason.LENGTH


async def test_engines_of_one_machine_do_not_share_one_core(pair: Pair) -> None:
    own = os.sched_getaffinity(0)
    for pid in (*pair.prefill.pids, *pair.decode.pids):
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        assert [thread for thread in threads if os.sched_getaffinity(thread) != own] == []


async def test_a_writer_that_stands_still_or_is_killed_costs_a_recompute(
    pair: Pair, demo_model: Path, tmp_path: Path
) -> None:
    doomed = await started_engine(demo_model, Role.PREFILL, tmp_path, kv_transfer=TRANSFER)

    def send(number: signal.Signals) -> None:
        for pid in doomed.pids:
            os.kill(pid, number)

    try:
        before = await pair.decode.quiet()
        ids = prompt(300, seed=7)
        first = await doomed.prefill(ids)
        send(signal.SIGSTOP)  # before decode has met it: meeting is what can wait, for seconds
        async with asyncio.timeout(20):
            assert (await pair.decode.decode(ids, OUTPUT, first.ticket)).tokens == await pair.prefill.alone(ids, OUTPUT)
        send(signal.SIGCONT)
        first = await doomed.prefill(prompt(100, seed=8))
        assert (await pair.decode.decode(prompt(100, seed=8), 2, first.ticket)).origin.pulled_tokens == 100
        ids = prompt(300, seed=9)
        first = await doomed.prefill(ids)
        send(signal.SIGKILL)
        assert (await pair.decode.decode(ids, OUTPUT, first.ticket)).tokens == await pair.prefill.alone(ids, OUTPUT)
    finally:
        await doomed.close()
    after = await pair.decode.quiet()
    assert count(after, "nixl", "failed").count == count(before, "nixl", "failed").count + 2
    assert after.recomputed_requests == before.recomputed_requests + 2
    again = await pair.prefill.prefill(prompt(90, seed=9))
    assert (await pair.decode.decode(prompt(90, seed=9), 2, again.ticket)).origin.pulled_tokens == 90


async def test_garbage_on_the_side_channel_leaves_both_engines_at_work(pair: Pair) -> None:
    """The last test of this file: the connector has no more than one thread for it, which ends."""
    first = await pair.prefill.prefill(prompt(70, seed=30))
    params = pb.Ticket.FromString(first.ticket).stock_params
    assert (await pair.decode.decode(prompt(70, seed=30), 2, first.ticket)).origin.pulled_tokens == 70
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.connect(f"tcp://127.0.0.1:{json.loads(params)['remote_port']}")
        for garbage in ([b"\xff" * 100], [b"", b"\xc1"], [b"", b"\x93\x01\x02"]):
            stranger.send_multipart(garbage)
        stranger.setsockopt(zmq.LINGER, 1000)
    first = await pair.prefill.prefill(prompt(80, seed=31))
    apart = await pair.decode.decode(prompt(80, seed=31), OUTPUT, first.ticket)
    assert apart.origin.pulled_tokens == 80
    assert apart.tokens == await pair.prefill.alone(prompt(80, seed=31), OUTPUT)
