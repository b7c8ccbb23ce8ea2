"""Chunk pipelining in real vLLM engines, float32: decode pulls a prompt's blocks while prefill computes the rest of it.

Both engines are stepped by hand, so that it is known which step ran when. Whatever goes wrong, the decode leg says what
one engine says, and nothing is left behind on either side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engine import FinishReason, PrefillInProgress, Role
from cluster.kv_link import KvStats
from kv_transfer.announcement import read_announcement
from tests.kv_transfer.engine_process import BLOCK_SIZE
from tests.kv_transfer.stepped_engine import CHUNK, SteppedEngine, decode, prefetch, prefill
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

    @property
    def origin(self) -> PrefillInProgress:
        return PrefillInProgress(self.source, 1, self.first)


@pytest.fixture(scope="module")
def engines(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from vllm import SamplingParams

    from cluster.vllm_params import encode_params

    folder = tmp_path_factory.mktemp("engines")
    writer = SteppedEngine(demo_model, Role.PREFILL, "prefill-0", folder, chunk_pipelining=True)
    reader = SteppedEngine(demo_model, Role.DECODE, "decode-0", folder, chunk_pipelining=True, read_deadline_s=2.0)
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
    for engine in (engines.prefill, engines.decode):
        engine.ask("forget_prefixes")
    yield engines
    for engine in (engines.prefill, engines.decode):
        stats = wait_for_no_lease(engine)
        assert (stats.leases, stats.pinned_blocks, stats.pending_releases) == (0, 0, 0)


def wait_for_no_lease(engine: SteppedEngine) -> KvStats:
    """A reader says goodbye in the background, and a lease that nobody follows lives for a moment."""
    for _ in range(500):
        if not (stats := engine.stats()).leases:
            return stats
    raise AssertionError(f"a lease is left: {stats}")


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
    pair.decode.submit(decode(pair.rest, [*ids, *first.tokens], OUTPUT - 1, first.ticket, pair.ahead, pair.params))
    rest = pair.decode.run(pair.rest)
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
