"""Chunk pipelining in real vLLM engines, float32: decode pulls a prompt's blocks while prefill computes the rest of it.

Both engines are stepped by hand, so that it is known which step ran when. Whatever goes wrong, the decode leg says what
one engine says, and nothing is left behind on either side.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engine import FinishReason, PrefillInProgress, Role
from cluster.kv_link import KvStats
from kv_transfer.announcement import read_announcement
from tests.kv_transfer.engine_process import BLOCK_SIZE
from tests.kv_transfer.stepped_engine import CHUNK, Ended, SteppedEngine, decode, prefetch, prefill
from tests.kv_transfer.test_connector_engine import count, prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

OUTPUT = 12
LENGTHS = (CHUNK, CHUNK + 1, 3 * CHUNK - BLOCK_SIZE, 1000, 3000)


class Pair:
    """Both engines and the names of one request's attempts."""

    numbers = itertools.count()

    def __init__(self, prefill: SteppedEngine, decode: SteppedEngine, source: str, params: bytes) -> None:
        self.prefill = prefill
        self.decode = decode
        self.source = source
        self.params = params
        self.rename()

    def rename(self) -> None:
        number = next(self.numbers)
        self.first, self.ahead, self.rest = (f"r{number}/{leg}" for leg in ("prefill", "prefetch", "decode"))

    def begin(self, ids: list[int]) -> None:
        """Prefill has computed its first chunk, and the prefetch has it."""
        self.prefill.submit(prefill(self.first, ids, self.params))
        self.decode.submit(prefetch(self.ahead, ids, self.origin))
        self.prefill.ask("step")
        self.decode.ask("step_until_pulled", CHUNK // BLOCK_SIZE)

    def continue_from(self, first: Ended, ids: list[int], after: str = "") -> Ended:
        """The decode leg behind prefill's token, to its end."""
        self.decode.submit(decode(self.rest, [*ids, *first.tokens], OUTPUT - 1, first.ticket, after, self.params))
        return self.decode.run(self.rest)

    def phase(self) -> str:
        phase: str = self.decode.ask("prefetch_phase", self.ahead)
        return phase

    def step_until(self, phase: str) -> None:
        end = time.monotonic() + 20
        while self.phase() != phase:
            assert time.monotonic() < end, f"the prefetch is {self.phase()}"
            self.decode.ask("step")

    @property
    def origin(self) -> PrefillInProgress:
        return PrefillInProgress(self.source, 1, self.first)


@pytest.fixture(scope="module")
def engines(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from vllm import SamplingParams

    from cluster.vllm_params import encode_params

    folder = tmp_path_factory.mktemp("engines")
    writer = SteppedEngine(demo_model, Role.PREFILL, "prefill-0", folder, chunk_pipelining=True)
    reader = SteppedEngine(demo_model, Role.DECODE, "decode-0", folder, chunk_pipelining=True, connect_deadline_s=2.0)
    try:
        for engine in (writer, reader):
            engine.wait_until_ready()
        told = read_announcement(folder / "prefill-0.json")
        assert told is not None
        params = encode_params(SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True, detokenize=False))
        yield Pair(writer, reader, told.address, params)
    finally:
        for engine in (writer, reader):
            engine.kill()


@pytest.fixture
def pair(engines: Pair) -> Iterator[Pair]:
    engines.rename()
    engines.decode.ask("break_transports")
    engines.decode.ask("use_only")
    for engine in (engines.prefill, engines.decode):
        engine.ask("forget_prefixes")
    yield engines
    for engine in (engines.prefill, engines.decode):
        stats = wait_for_no_lease(engine)
        assert (stats.leases, stats.pinned_blocks, stats.pending_releases) == (0, 0, 0)
        engine.ask("check_idle")


def wait_for_no_lease(engine: SteppedEngine) -> KvStats:
    """A reader says goodbye in the background, and a lease that nobody follows lives for a moment."""
    end = time.monotonic() + 20
    while (stats := engine.stats()).leases:
        assert time.monotonic() < end, f"a lease is left: {stats}"
    return stats


@pytest.mark.parametrize("length", LENGTHS)
def test_decode_has_what_prefill_has_computed_before_prefill_is_finished(pair: Pair, length: int) -> None:
    ids = prompt(length)
    before = pair.decode.stats()
    pair.prefill.submit(prefill(pair.first, ids, pair.params))
    pair.decode.submit(prefetch(pair.ahead, ids, pair.origin))
    steps = -(-length // CHUNK)
    for step in range(1, steps):
        pair.prefill.ask("step")
        pair.decode.ask("step_until_pulled", step * CHUNK // BLOCK_SIZE)
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    fetched = pair.decode.run(pair.ahead)
    after = pair.decode.stats()
    assert fetched.reason is FinishReason.LENGTH
    whole = (length - 1) // BLOCK_SIZE
    assert fetched.pulled == whole * BLOCK_SIZE
    assert (
        count(after, "nixl", "ahead").blocks - count(before, "nixl", "ahead").blocks
        == (steps - 1) * CHUNK // BLOCK_SIZE
    )
    assert rest.cached >= whole * BLOCK_SIZE
    assert rest.cached + rest.pulled == length
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)
    assert after.recomputed_requests == before.recomputed_requests


@pytest.mark.parametrize("transport", ["nixl", "grpc"])
def test_a_prefetch_pulls_only_what_decode_lacks(pair: Pair, transport: str) -> None:
    pair.decode.ask("use_only", transport)
    ids = prompt(900)
    known = 10 * BLOCK_SIZE
    pair.decode.ask("generate", [*ids[:known], 7, 7, 7], 1, None)
    before = pair.decode.stats()
    pair.prefill.submit(prefill(pair.first, ids, pair.params))
    pair.decode.submit(prefetch(pair.ahead, ids, pair.origin))
    pair.prefill.ask("step", 2)
    pair.decode.ask("step_until_pulled", 2 * CHUNK // BLOCK_SIZE - 10)
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    fetched = pair.decode.run(pair.ahead)
    assert (fetched.cached, fetched.pulled) == (known, 899 // BLOCK_SIZE * BLOCK_SIZE - known)
    after = pair.decode.stats()
    landed = [count(stats, transport, "landed") for stats in (before, after)]
    # The tail that is no whole block, or that the prefetch computed itself, is the decode leg's own to get.
    assert landed[1].blocks - landed[0].blocks == fetched.pulled // BLOCK_SIZE + -(-rest.pulled // BLOCK_SIZE)
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_decode_leg_waits_for_a_prefetch_that_is_under_way(pair: Pair) -> None:
    ids = prompt(600)
    pair.begin(ids)
    first = pair.prefill.run(pair.first)
    before = pair.decode.ask("blocks_read")
    rest = pair.continue_from(first, ids, after=pair.ahead)
    assert before < 599 // BLOCK_SIZE
    assert rest.cached >= 599 // BLOCK_SIZE * BLOCK_SIZE, "it did not wait"
    assert pair.decode.run(pair.ahead).reason is FinishReason.LENGTH
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_prefetch_aborted_half_way_costs_nothing_but_the_overlap(pair: Pair) -> None:
    ids = prompt(900)
    before = pair.decode.stats()
    pair.begin(ids)
    pair.decode.ask("abort", pair.ahead)
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    after = pair.decode.stats()
    assert (rest.cached, rest.pulled) == (0, 900)
    assert count(after, "nixl", "cancelled").count == count(before, "nixl", "cancelled").count + 1
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_prefill_aborted_half_way_parks_its_prefetch_which_computes_nothing(pair: Pair) -> None:
    ids = prompt(900)
    before = pair.decode.stats()
    pair.begin(ids)
    pair.prefill.ask("abort", pair.first)
    pair.step_until("PARKED")
    pair.decode.ask("step", 20)
    assert pair.phase() == "PARKED"
    assert pair.decode.ask("states") == {pair.ahead: "WAITING"}
    assert pair.decode.ask("generate", prompt(40, seed=9), 2, None).tokens, "others go on beside it"
    pair.decode.ask("abort", pair.ahead)
    after = pair.decode.stats()
    assert count(after, "nixl", "failed").count == count(before, "nixl", "failed").count + 1
    assert after.recomputed_requests == before.recomputed_requests


def test_a_writer_killed_half_way_parks_the_prefetch_and_another_prefill_takes_over(
    pair: Pair, demo_model: Path, tmp_path: Path
) -> None:
    ids = prompt(900)
    doomed = SteppedEngine(demo_model, Role.PREFILL, "prefill-1", tmp_path, chunk_pipelining=True)
    try:
        doomed.wait_until_ready()
        told = read_announcement(tmp_path / "prefill-1.json")
        assert told is not None
        doomed.submit(prefill(pair.first, ids, pair.params))
        pair.decode.submit(prefetch(pair.ahead, ids, PrefillInProgress(told.address, 1, pair.first)))
        doomed.ask("step")
        pair.decode.ask("step_until_pulled", CHUNK // BLOCK_SIZE)
    finally:
        doomed.kill()
    pair.step_until("PARKED")
    pair.decode.ask("abort", pair.ahead)
    pair.rename()
    pair.begin(ids)
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    assert pair.decode.run(pair.ahead).pulled == 899 // BLOCK_SIZE * BLOCK_SIZE
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_prefetch_over_a_nixl_that_fails_goes_on_over_grpc(pair: Pair) -> None:
    ids = prompt(900)
    before = pair.decode.stats()
    pair.begin(ids)
    pair.decode.ask("break_transports", ("nixl", 0.5))
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    assert pair.decode.run(pair.ahead).pulled == 899 // BLOCK_SIZE * BLOCK_SIZE
    after = pair.decode.stats()
    assert count(after, "nixl", "failed").count == count(before, "nixl", "failed").count + 1
    assert count(after, "grpc", "landed").count >= count(before, "grpc", "landed").count + 1
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_when_no_transport_works_decode_computes_the_prompt_once(pair: Pair) -> None:
    ids = prompt(900)
    before = pair.decode.stats()
    pair.begin(ids)
    pair.decode.ask("break_transports", ("nixl", 0.5), ("grpc", 0.5))
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    assert pair.decode.run(pair.ahead).pulled == 0, "parked, until the decode leg had computed the prompt"
    after = pair.decode.stats()
    assert (rest.cached, rest.pulled) == (0, 0)
    assert after.recomputed_requests == before.recomputed_requests + 1
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_prefetch_that_follows_nothing_does_not_keep_its_decode_leg_waiting(pair: Pair) -> None:
    """As when the writer does not let prompts be followed, or has lost the attempt."""
    ids = prompt(600)
    pair.prefill.submit(prefill(pair.first, ids, pair.params))
    pair.decode.submit(prefetch(pair.ahead, ids, PrefillInProgress(pair.source, 1, "an attempt that never was")))
    pair.decode.ask("step", 3)
    first = pair.prefill.run(pair.first)
    rest = pair.continue_from(first, ids, after=pair.ahead)
    assert (rest.cached, rest.pulled) == (0, 600)
    assert pair.decode.run(pair.ahead).pulled == 0, "parked, until the decode leg had the prompt"
    assert first.tokens + rest.tokens == pair.decode.alone(ids, OUTPUT)


def test_a_prefetch_of_another_prompt_is_refused(pair: Pair) -> None:
    ids = prompt(600)
    before = pair.decode.stats()
    pair.prefill.submit(prefill(pair.first, ids, pair.params))
    pair.decode.submit(prefetch(pair.ahead, prompt(600, seed=2), pair.origin))
    pair.prefill.ask("step")
    pair.step_until("PARKED")
    pair.decode.ask("abort", pair.ahead)
    pair.prefill.run(pair.first)
    pair.prefill.ask("let_leases_expire")
    after = pair.decode.stats()
    refused = [sum(t.count for t in stats.transfers if t.outcome == "refused") for stats in (before, after)]
    assert refused[1] == refused[0] + 1


def test_a_prompt_that_nobody_follows_pins_nothing_for_long(pair: Pair) -> None:
    before = pair.prefill.stats()
    pair.prefill.submit(prefill(pair.first, prompt(900), pair.params))
    pair.prefill.run(pair.first)
    pair.prefill.ask("release", pair.first)
    after = wait_for_no_lease(pair.prefill)
    assert after.leases_expired == before.leases_expired + 1
