"""Which blocks of a prompt in progress are published, and when: never before the step that computed them has run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from kv_transfer.connector.grower import Grower
from kv_transfer.growing_exports import GrowingExports
from kv_transfer.lease import Free, LeaseTable
from kv_transfer.lease_book import LeaseBook
from kv_transfer.ticket_writer import TicketWriter
from tests.kv_transfer.conftest import BLOCK_SIZE, EPOCH, HandClock

PROMPT_BLOCKS = 6


@dataclass
class Block:
    ref_cnt: int = 1  # held by its request


@dataclass
class Pool:
    """As vLLM's block pool counts."""

    blocks: list[Block] = field(default_factory=lambda: [Block() for _ in range(50)])

    def touch(self, blocks: list[Block]) -> None:
        for block in blocks:
            block.ref_cnt += 1

    def free_blocks(self, blocks: list[Block]) -> None:
        for block in blocks:
            block.ref_cnt -= 1

    @property
    def pinned(self) -> list[int]:
        return [i for i, block in enumerate(self.blocks) if block.ref_cnt > 1]


@dataclass
class Request:
    request_id: str = "r/prefill1"
    prompt_token_ids: list[int] | None = field(default_factory=lambda: list(range(PROMPT_BLOCKS * BLOCK_SIZE + 5)))
    num_computed_tokens: int = 0
    lora_request: Any = None
    mm_features: Any = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids or ())


class Writer:
    """An engine's thread: schedules steps, of which some may be under way at the same time."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.clock = HandClock()
        self.book = LeaseBook(LeaseTable(EPOCH, 10.0), self.clock)
        ticket_writer = TicketWriter("prefill-0", EPOCH, "here:1", b"f", b"secret", 10.0)
        self.grower = Grower(GrowingExports(self.book, ticket_writer, BLOCK_SIZE), self.pool, BLOCK_SIZE)
        self.request = Request()
        self.blocks = list(range(10, 20))
        self.step = 0
        self.grower.begin(self.request)

    def schedule(self, tokens: int) -> int:
        """Returns the step's number, 0 when nobody needs to hear that it has run."""
        self.step += 1
        wanted = self.grower.scheduled(self.step, {self.request.request_id: tokens}, lambda _: (self.blocks,))
        self.request.num_computed_tokens += tokens
        return self.step if wanted else 0

    def published(self) -> tuple[tuple[int, ...], bool] | None:
        mark = self.book.follow(self.request.request_id, EPOCH, "reader", 0, 0.0)
        return None if mark is None else (mark.block_ids, mark.closed)

    def take_back(self) -> None:
        def give_back(free: Free) -> None:
            self.pool.free_blocks([self.pool.blocks[i] for i in free.block_ids])

        self.book.take_frees(give_back)
        self.book.check_integrity()


@pytest.fixture
def writer() -> Writer:
    return Writer()


def test_blocks_are_pinned_when_scheduled_and_published_when_their_step_has_run(writer: Writer) -> None:
    step = writer.schedule(2 * BLOCK_SIZE + 3)
    assert writer.pool.pinned == [10, 11]
    assert writer.published() is None, "the step has not run"
    writer.grower.ran(step)
    assert writer.published() == ((10, 11), False)


def test_with_several_steps_under_way_each_publishes_its_own_blocks(writer: Writer) -> None:
    first, second = writer.schedule(2 * BLOCK_SIZE), writer.schedule(BLOCK_SIZE)
    writer.grower.ran(first)
    assert writer.published() == ((10, 11), False)
    writer.grower.ran(second)
    assert writer.published() == ((10, 11, 12), False)


def test_a_block_that_a_chunk_began_is_published_with_the_chunk_that_fills_it(writer: Writer) -> None:
    writer.grower.ran(writer.schedule(BLOCK_SIZE + 10))
    assert writer.published() == ((10,), False)
    assert writer.schedule(5) == 0, "nothing to hear of: no block became whole"
    writer.grower.ran(writer.schedule(BLOCK_SIZE))
    assert writer.published() == ((10, 11), False)


def test_generated_tokens_are_not_the_prompts(writer: Writer) -> None:
    writer.grower.ran(writer.schedule(writer.request.num_prompt_tokens))
    writer.grower.ran(writer.schedule(BLOCK_SIZE) or writer.step)
    assert writer.published() == (tuple(range(10, 10 + PROMPT_BLOCKS)), False)


def test_a_lease_is_closed_after_the_last_step_has_run_also_when_the_request_is_over_before(writer: Writer) -> None:
    step = writer.schedule(2 * BLOCK_SIZE)
    writer.grower.over(writer.request.request_id)
    assert writer.published() is None
    writer.grower.ran(step)
    assert writer.published() == ((10, 11), True)
    writer.grower.check_idle()


def test_a_preempted_prompt_keeps_what_was_published_and_goes_on_behind_it(writer: Writer) -> None:
    writer.grower.ran(writer.schedule(2 * BLOCK_SIZE))
    writer.request.num_computed_tokens, writer.blocks = 0, [30, 31, 32, 33]
    assert writer.schedule(BLOCK_SIZE) == 0, "its first blocks are there, though others hold them now"
    writer.grower.ran(writer.schedule(2 * BLOCK_SIZE))
    assert writer.published() == ((10, 11, 32), False)


def test_blocks_of_a_lease_that_ended_meanwhile_stay_the_engines(writer: Writer) -> None:
    writer.grower.ran(writer.schedule(BLOCK_SIZE))
    step = writer.schedule(BLOCK_SIZE)
    writer.clock.time += 1000
    writer.grower.ran(step)
    writer.take_back()
    assert writer.pool.pinned == []
    assert writer.schedule(BLOCK_SIZE) == 0
    writer.grower.over(writer.request.request_id)
    writer.grower.check_idle()


def test_an_id_that_was_used_before_is_not_followed_again(writer: Writer) -> None:
    writer.grower.ran(writer.schedule(BLOCK_SIZE))
    writer.grower.over(writer.request.request_id)
    writer.request.num_computed_tokens = 0
    writer.grower.begin(writer.request)
    writer.grower.ran(writer.schedule(2 * BLOCK_SIZE))
    assert writer.published() == ((10,), True)
    writer.grower.over(writer.request.request_id)
    writer.clock.time += 1000
    writer.take_back()
    assert writer.pool.pinned == []


def test_a_prompt_without_a_whole_block_leaves_nothing(writer: Writer) -> None:
    assert writer.schedule(BLOCK_SIZE - 1) == 0
    writer.grower.over(writer.request.request_id)
    writer.grower.check_idle()
    assert writer.published() is None
