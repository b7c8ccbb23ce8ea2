"""What the scheduler is told of a prefetch, and of the request that waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.engine import PrefillInProgress
from kv_transfer.connector.prefetcher import Prefetcher
from tests.kv_transfer.conftest import BLOCK_SIZE, HandClock

ORIGIN = PrefillInProgress("there:1", 3, "r/prefill1")
BLOCKS = list(range(20, 30))
PATIENCE_S = 15.0


@dataclass
class Request:
    request_id: str = "r/prefetch1"
    prompt_token_ids: list[int] = field(default_factory=lambda: list(range(4 * BLOCK_SIZE + 1)))
    lora_request: Any = None
    mm_features: Any = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)


class Reader:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.prefetcher = Prefetcher(BLOCK_SIZE, PATIENCE_S, self.clock)
        self.request = Request()
        self.prefetcher.begin(self.request, ORIGIN)

    def missing(self, local: int = 0) -> int | None:
        return self.prefetcher.missing_tokens(self.request, local)

    def allocate(self, tokens: int) -> None:
        self.prefetcher.allocated(self.request.request_id, BLOCKS, tokens)

    def receive(self, *, failed: bool = False) -> None:
        ids = {self.request.request_id}
        assert self.prefetcher.received(ids | {"of others"}, ids if failed else set()) == ids


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_whole_blocks_behind_our_own_are_followed(reader: Reader) -> None:
    assert reader.missing(local=BLOCK_SIZE) == 3 * BLOCK_SIZE
    reader.allocate(3 * BLOCK_SIZE)
    (job,), done = reader.prefetcher.take_orders()
    assert (job.first, job.target, job.prompt_done, done) == (1, (21, 22, 23), False, ())
    assert job.origin is ORIGIN


def test_a_prompt_that_ends_with_a_block_leaves_that_block_to_the_engine(reader: Reader) -> None:
    reader.request.prompt_token_ids.pop()
    assert reader.missing() == 3 * BLOCK_SIZE, "the last token's output is what an engine needs to go on"


def test_a_decode_leg_waits_until_the_blocks_are_in_the_cache(reader: Reader) -> None:
    reader.missing()
    reader.prefetcher.await_prefetch("r/decode2", reader.request.request_id)
    assert reader.prefetcher.must_wait("r/decode2")
    reader.allocate(4 * BLOCK_SIZE)
    (job,), done = reader.prefetcher.take_orders()
    assert (job.prompt_done, done) == (True, ())
    reader.receive()
    assert reader.prefetcher.must_wait("r/decode2"), "landed, but the scheduler has not cached them yet"
    reader.allocate(0)
    assert not reader.prefetcher.must_wait("r/decode2")


def test_a_follower_is_told_once_that_the_prompt_is_finished(reader: Reader) -> None:
    reader.missing()
    reader.allocate(4 * BLOCK_SIZE)
    reader.prefetcher.take_orders()
    reader.prefetcher.await_prefetch("r/decode2", reader.request.request_id)
    assert reader.prefetcher.take_orders() == ((), (reader.request.request_id,))
    assert not reader.prefetcher.has_orders


@pytest.mark.parametrize("end", ["failed", "aborted", "patience", "unknown"])
def test_a_decode_leg_does_not_wait_for_what_will_not_come(reader: Reader, end: str) -> None:
    reader.missing()
    reader.allocate(4 * BLOCK_SIZE)
    known = "never heard of" if end == "unknown" else reader.request.request_id
    reader.prefetcher.await_prefetch("r/decode2", known)
    match end:
        case "failed":
            reader.receive(failed=True)
        case "aborted":
            reader.prefetcher.finish(reader.request.request_id)
        case "patience":
            reader.clock.time += PATIENCE_S
    assert not reader.prefetcher.must_wait("r/decode2")


def test_a_failed_prefetch_never_computes_the_prompt_but_may_end_when_it_is_there(reader: Reader) -> None:
    reader.missing()
    reader.allocate(4 * BLOCK_SIZE)
    reader.receive(failed=True)
    assert reader.missing(local=3 * BLOCK_SIZE) is None
    assert reader.missing() is None
    assert reader.missing(local=4 * BLOCK_SIZE) == 0


def test_a_prefetch_that_lost_its_blocks_again_does_not_compute_them(reader: Reader) -> None:
    reader.missing()
    reader.allocate(4 * BLOCK_SIZE)
    reader.receive()
    reader.allocate(0)
    assert reader.missing() is None


def test_nothing_is_followed_when_all_is_there(reader: Reader) -> None:
    assert reader.missing(local=4 * BLOCK_SIZE) == 0
    reader.allocate(0)
    assert not reader.prefetcher.has_orders
    reader.prefetcher.await_prefetch("r/decode2", reader.request.request_id)
    assert not reader.prefetcher.must_wait("r/decode2")


def test_an_aborted_prefetch_is_still_expected_back_and_then_nothing_is_left(reader: Reader) -> None:
    reader.missing()
    reader.allocate(4 * BLOCK_SIZE)
    reader.prefetcher.take_orders()
    reader.prefetcher.await_prefetch("r/decode2", reader.request.request_id)
    reader.prefetcher.take_orders()
    reader.prefetcher.finish(reader.request.request_id)
    reader.prefetcher.finish("r/decode2")
    with pytest.raises(AssertionError, match="followed for no request"):
        reader.prefetcher.check_idle()
    reader.receive(failed=True)
    reader.prefetcher.check_idle()
