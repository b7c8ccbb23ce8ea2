"""The connector in real vLLM engines, float32: prefill and decode engine say what one engine says, and blocks really
move.

Whatever goes wrong ends in a recomputed prompt, with nothing left behind on either side.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engine import Role, TransferCount
from cluster.kv_link import KvStats
from tests.kv_transfer.engine_process import BLOCK_SIZE, EngineProcess, Generated

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

LENGTHS = (1, 5, 31, 32, 33, 63, 64, 65, 95, 96, 97, 300, 1000, 3000)
OUTPUT = 12


class Pair:
    """Both engines; after every test nothing may be left in either."""

    def __init__(self, prefill: EngineProcess, decode: EngineProcess) -> None:
        self.prefill = prefill
        self.decode = decode

    def settled(self) -> tuple[KvStats, KvStats]:
        return self.prefill.stats(), self.decode.stats()


@pytest.fixture(scope="module")
def engines(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("engines")
    prefill = EngineProcess(demo_model, Role.PREFILL, "prefill-0", folder)
    decode = EngineProcess(demo_model, Role.DECODE, "decode-0", folder, connect_deadline_s=2.0)
    try:
        for engine in (prefill, decode):
            engine.wait_until_ready()
        yield Pair(prefill, decode)
    finally:
        for engine in (prefill, decode):
            engine.kill()


@pytest.fixture
def pair(engines: Pair) -> Iterator[Pair]:
    for engine in (engines.prefill, engines.decode):
        engine.ask("forget_prefixes")
    engines.decode.ask("break_transports")
    engines.decode.ask("use_only")
    yield engines
    prefill, decode = engines.settled()
    assert (prefill.leases, prefill.pinned_blocks, prefill.pending_releases) == (0, 0, 0)
    assert (decode.leases, decode.pinned_blocks, decode.pending_releases) == (0, 0, 0)
    for engine in (engines.prefill, engines.decode):
        engine.ask("check_idle")


def prompt(length: int, seed: int = 1) -> list[int]:
    draw = random.Random(f"{seed}-{length}")
    return [draw.randrange(4, 4096) for _ in range(length)]


def count(stats: KvStats, transport: str, outcome: str) -> TransferCount:
    found = [t for t in stats.transfers if (t.transport, t.outcome) == (transport, outcome)]
    return found[0] if found else TransferCount(transport, outcome, 0, 0, 0)


@pytest.mark.parametrize("seeded", [True, False], ids=["first token from prefill", "first token from decode"])
@pytest.mark.parametrize("length", LENGTHS)
def test_two_engines_say_what_one_says_and_blocks_really_moved(pair: Pair, length: int, seeded: bool) -> None:
    ids = prompt(length)
    before = pair.settled()
    first = pair.prefill.prefill(ids)
    if seeded:
        useful = length
        apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
        tokens = first.tokens + apart.tokens
    else:
        useful = length - 1  # to sample the first token, decode computes the prompt's last one itself
        apart = pair.decode.decode(ids, OUTPUT, first.ticket)
        tokens = apart.tokens
    prefill, decode = pair.settled()
    assert tokens == pair.decode.alone(ids, OUTPUT)
    assert apart.external == useful, "more of the prompt was computed than had to be"
    pulled, pulled_before = count(decode, "nixl", "landed"), count(before[1], "nixl", "landed")
    blocks = -(-useful // BLOCK_SIZE)
    assert (pulled.count - pulled_before.count, pulled.blocks - pulled_before.blocks) == (min(useful, 1), blocks)
    assert prefill.blocks_sent - before[0].blocks_sent == blocks
    assert prefill.bytes_sent - before[0].bytes_sent == pulled.bytes - pulled_before.bytes >= 4 * 256 * useful
    assert decode.recomputed_requests == before[1].recomputed_requests


class Told:
    """What a hand-off said and counted, beside what one engine says."""

    def __init__(self, pair: Pair, ids: list[int]) -> None:
        before = pair.decode.stats()
        first = pair.prefill.prefill(ids)
        apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
        after = pair.decode.stats()
        self.tokens = first.tokens + apart.tokens
        self.expected = pair.decode.alone(ids, OUTPUT)
        self.external = apart.external
        self.recomputed = after.recomputed_requests - before.recomputed_requests
        was = {(t.transport, t.outcome): t.count for t in before.transfers}
        now = {(t.transport, t.outcome): t.count for t in after.transfers}
        self.counted = {"/".join(key): n - was.get(key, 0) for key, n in now.items() if n != was.get(key, 0)}


@pytest.mark.parametrize("length", [1, 33, 300, 3000])
def test_over_grpc_two_engines_say_what_one_says(pair: Pair, length: int) -> None:
    pair.decode.ask("use_only", "grpc")
    told = Told(pair, prompt(length))
    assert (told.tokens, told.external, told.recomputed) == (told.expected, length, 0)
    assert told.counted == {"grpc/landed": 1}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_nixl_read_that_fails_half_way_lands_over_grpc_in_the_same_blocks(pair: Pair, share: float) -> None:
    pair.decode.ask("break_transports", ("nixl", share))
    told = Told(pair, prompt(300))
    assert (told.tokens, told.external, told.recomputed) == (told.expected, 300, 0)
    assert told.counted == {"nixl/failed": 1, "grpc/landed": 1}
    second = Told(pair, prompt(100))
    assert second.tokens == second.expected
    assert second.counted == {"grpc/landed": 1}, "the second request tried again what had just failed"


def test_when_both_transports_fail_the_prompt_is_computed_and_then_at_once(pair: Pair) -> None:
    pair.decode.ask("break_transports", ("nixl", 0.5), ("grpc", 0.5))
    told = Told(pair, prompt(300))
    assert (told.tokens, told.external, told.recomputed) == (told.expected, 0, 1)
    assert told.counted == {"nixl/failed": 1, "grpc/failed": 1}
    second = Told(pair, prompt(100))
    assert (second.tokens, second.recomputed) == (second.expected, 1)
    assert second.counted == {"none/skipped": 1}
    wait_for_no_lease(pair)


def test_many_requests_at_once_say_what_each_says_alone(pair: Pair) -> None:
    prompts = [prompt(length, seed) for seed in (2, 3) for length in (1, 32, 33, 64, 100, 257, 600, 900)]
    firsts: list[Generated] = pair.prefill.ask("generate_many", [(ids, 1, {"export": True}) for ids in prompts])
    requests = [
        ([*ids, *first.tokens], OUTPUT - 1, {"ticket": first.ticket})
        for ids, first in zip(prompts, firsts, strict=True)
    ]
    rests: list[Generated] = pair.decode.ask("generate_many", requests)
    assert [rest.external for rest in rests] == [len(ids) for ids in prompts]
    for ids, first, rest in zip(prompts, firsts, rests, strict=True):
        assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_flipped_byte_in_a_moved_block_changes_the_output(pair: Pair) -> None:
    """Without this, equal tokens would prove nothing."""
    ids = prompt(200)
    changed = 0
    for layer, offset in ((0, 3), (1, 4099), (2, 8195), (3, 16383)):
        pair.prefill.ask("forget_prefixes")
        first = pair.prefill.prefill(ids)
        for block_id in blocks_of(first.ticket):
            pair.prefill.ask("flip_byte", layer, block_id, offset)
        apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
        changed += first.tokens + apart.tokens != pair.decode.alone(ids, OUTPUT)
        pair.prefill.stats()
    assert changed >= 3


def test_only_blocks_that_decode_lacks_are_pulled(pair: Pair) -> None:
    shared, tail = prompt(128), prompt(70, seed=9)
    pair.decode.ask("generate", shared + prompt(40, seed=5), 1, None)
    before = pair.settled()
    first = pair.prefill.prefill(shared + tail)
    apart = pair.decode.decode([*shared, *tail, *first.tokens], OUTPUT - 1, first.ticket)
    after = pair.settled()
    assert after[0].blocks_sent - before[0].blocks_sent == -(-70 // BLOCK_SIZE)
    assert first.tokens + apart.tokens == pair.decode.alone(shared + tail, OUTPUT)


def test_a_prompt_that_decode_holds_already_moves_nothing_and_frees_the_lease_at_once(pair: Pair) -> None:
    ids = prompt(64)
    pair.decode.ask("generate", [*ids, 5, 6], 1, None)
    before = pair.settled()
    first = pair.prefill.prefill(ids)
    apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
    after = pair.settled()
    assert wait_for_no_lease(pair).leases_released == before[0].leases_released + 1
    assert after[0].blocks_sent == before[0].blocks_sent
    assert count(after[1], "local", "landed").count == count(before[1], "local", "landed").count + 1
    assert first.tokens + apart.tokens == pair.decode.alone(ids, OUTPUT)


@pytest.mark.parametrize("damage", ["garbage", "cut off", "another prompt's"])
def test_a_bad_ticket_is_refused_and_the_prompt_computed(pair: Pair, damage: str) -> None:
    ids = prompt(100)
    first = pair.prefill.prefill(ids)
    ticket = {
        "garbage": b"\xff" * 40,
        "cut off": first.ticket[:-1],
        "another prompt's": pair.prefill.prefill(prompt(100, seed=7)).ticket,
    }[damage]
    before = pair.decode.stats()
    apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, ticket)
    after = pair.decode.stats()
    assert first.tokens + apart.tokens == pair.decode.alone(ids, OUTPUT)
    assert count(after, "none", "refused").count == count(before, "none", "refused").count + 1
    assert after.recomputed_requests == before.recomputed_requests + 1
    pair.prefill.ask("let_leases_expire")


def test_an_expired_lease_is_not_read_but_computed(pair: Pair) -> None:
    ids = prompt(100)
    first = pair.prefill.prefill(ids)
    pair.prefill.ask("let_leases_expire")
    before = pair.settled()
    apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
    after = pair.settled()
    assert first.tokens + apart.tokens == pair.decode.alone(ids, OUTPUT)
    assert apart.external == 0
    assert count(after[1], "none", "stale").count == count(before[1], "none", "stale").count + 1
    assert after[1].recomputed_requests == before[1].recomputed_requests + 1
    assert after[0].blocks_sent == before[0].blocks_sent


def test_a_request_aborted_while_its_blocks_are_on_the_way_leaves_nothing(pair: Pair) -> None:
    ids = prompt(300)
    before = pair.decode.stats()
    first = pair.prefill.prefill(ids)
    pair.prefill.signal(signal.SIGSTOP)
    try:
        pair.decode.ask("abort_while_pulling", [*ids, *first.tokens], first.ticket)
        after = pair.decode.stats()
    finally:
        pair.prefill.signal(signal.SIGCONT)
    # The transfer thread may not have reached for a transport yet when the abort comes.
    cancelled = [sum(count(stats, name, "cancelled").count for name in ("nixl", "none")) for stats in (before, after)]
    assert cancelled[1] == cancelled[0] + 1
    assert after.recomputed_requests == before.recomputed_requests
    assert wait_for_no_lease(pair).blocks_sent >= 0


def test_a_request_aborted_before_it_began_gives_its_lease_back(pair: Pair) -> None:
    ids = prompt(300)
    first = pair.prefill.prefill(ids)
    released = pair.prefill.stats().leases_released
    pair.decode.ask("refuse_before_it_begins", [*ids, *first.tokens], first.ticket)
    pair.decode.stats()
    assert wait_for_no_lease(pair).leases_released == released + 1


def test_a_stalled_source_is_given_up_at_the_deadline_and_the_prompt_computed(pair: Pair) -> None:
    ids = prompt(300)
    first = pair.prefill.prefill(ids)
    expected = pair.decode.alone(ids, OUTPUT)
    before = pair.decode.stats()
    pair.prefill.signal(signal.SIGSTOP)
    try:
        apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
    finally:
        pair.prefill.signal(signal.SIGCONT)
    after = pair.decode.stats()
    assert first.tokens + apart.tokens == expected
    failed = [sum(count(stats, name, "failed").count for name in ("nixl", "none")) for stats in (before, after)]
    assert failed[1] == failed[0] + 1
    assert after.recomputed_requests == before.recomputed_requests + 1
    pair.prefill.ask("let_leases_expire")


def test_a_source_that_was_killed_costs_a_recompute_and_its_successor_is_read_again(
    pair: Pair, demo_model: Path, tmp_path: Path
) -> None:
    doomed = EngineProcess(demo_model, Role.PREFILL, "prefill-1", tmp_path, prefer="grpc", forbid=["nixl"])
    try:
        doomed.wait_until_ready()
        ids = prompt(300, seed=4)
        warm = doomed.prefill(ids)
        before = pair.decode.stats()
        assert pair.decode.decode([*ids, *warm.tokens], 2, warm.ticket).external == 300
        assert count(pair.decode.stats(), "grpc", "landed").count == count(before, "grpc", "landed").count + 1
        pair.decode.ask("forget_prefixes")
        first = doomed.prefill(ids)
        before = pair.decode.stats()
    finally:
        doomed.kill()
    apart = pair.decode.decode([*ids, *first.tokens], OUTPUT - 1, first.ticket)
    after = pair.decode.stats()
    assert first.tokens + apart.tokens == pair.decode.alone(ids, OUTPUT)
    assert after.recomputed_requests == before.recomputed_requests + 1
    again = pair.prefill.prefill(ids)
    assert pair.decode.decode([*ids, *again.tokens], 2, again.ticket).external == 300


def blocks_of(ticket: bytes) -> tuple[int, ...]:
    from protos.baton.v1 import kv_pb2

    return tuple(kv_pb2.Ticket.FromString(ticket).groups[0].block_ids)


def wait_for_no_lease(pair: Pair) -> KvStats:
    """The reader says goodbye in the background."""
    for _ in range(500):
        if not (stats := pair.prefill.stats()).leases:
            return stats
    raise AssertionError(f"a lease is left: {stats}")
