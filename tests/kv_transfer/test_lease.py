"""The lease machine alone, single transitions by example. Interleavings: `test_lease_machine`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.errors import LeaseLost
from kv_transfer.lease import LINGER_S, Free, LeaseTable, Watermark

EPOCH = 7
LEASE_S = 10.0


def table(ranks: int = 1) -> LeaseTable:
    leases = LeaseTable(EPOCH, LEASE_S, ranks)
    leases.offer("a", (1, 2, 3), now=0.0)
    return leases


def test_a_lease_that_was_read_in_time_gives_its_blocks_back_once() -> None:
    leases = table()
    leases.claim("a", EPOCH, "reader", now=1.0)
    assert leases.complete("a", EPOCH, "reader", 0, 3, 300, now=2.0) == (Free("a", (1, 2, 3)),)
    assert leases.counts.pinned_blocks == 3, "pinned until the owner of the blocks has taken them back"
    leases.freed("a")
    assert (leases.counts.pinned_blocks, leases.counts.released, leases.counts.blocks_sent) == (0, 1, 3)


def test_a_completion_after_the_deadline_is_refused_even_before_expiry_was_noticed() -> None:
    leases = table()
    leases.claim("a", EPOCH, "reader", now=1.0)
    with pytest.raises(LeaseLost, match="expired"):
        leases.complete("a", EPOCH, "reader", 0, 3, 300, now=1.0 + LEASE_S)
    assert leases.expire(1.0 + LEASE_S) == (Free("a", (1, 2, 3)),)
    with pytest.raises(LeaseLost, match="has already expired"):
        leases.complete("a", EPOCH, "reader", 0, 3, 300, now=1.0 + LEASE_S)
    assert leases.counts.blocks_sent == 0


def test_a_claim_extends_the_lease_and_so_does_each_renewal() -> None:
    leases = table()
    assert leases.claim("a", EPOCH, "reader", now=9.0) == LEASE_S
    assert leases.claim("a", EPOCH, "reader", now=18.0) == LEASE_S
    assert leases.expire(27.9) == ()
    assert leases.complete("a", EPOCH, "reader", 0, 3, 300, now=27.9)


def test_a_second_reader_is_refused_while_the_first_one_reads() -> None:
    leases = table()
    leases.claim("a", EPOCH, "first", now=1.0)
    with pytest.raises(LeaseLost, match="being read by first"):
        leases.claim("a", EPOCH, "second", now=2.0)
    with pytest.raises(LeaseLost, match="never claimed by second"):
        leases.complete("a", EPOCH, "second", 0, 3, 300, now=2.0)


def test_a_message_of_another_epoch_is_refused_with_both_epochs() -> None:
    leases = table()
    with pytest.raises(LeaseLost, match="epoch 6, the engine's is 7"):
        leases.claim("a", 6, "reader", now=1.0)


def test_an_owners_release_ends_an_unclaimed_lease_but_never_one_that_is_being_read() -> None:
    leases = table()
    leases.offer("b", (4,), now=0.0)
    leases.claim("a", EPOCH, "reader", now=1.0)
    assert leases.release("a") == ()
    assert leases.release("b") == (Free("b", (4,)),)
    assert leases.release("a", "reader") == (Free("a", (1, 2, 3)),)
    assert leases.release("a", "reader") == leases.release("b") == leases.release("unknown") == ()


def test_a_repeated_completion_is_accepted_because_its_first_answer_may_have_been_lost() -> None:
    leases = table()
    leases.claim("a", EPOCH, "reader", now=1.0)
    leases.complete("a", EPOCH, "reader", 0, 3, 300, now=2.0)
    assert leases.complete("a", EPOCH, "reader", 0, 3, 300, now=2.1) == ()
    leases.freed("a")
    assert leases.complete("a", EPOCH, "reader", 0, 3, 300, now=99.0) == ()
    assert leases.counts.blocks_sent == 3
    with pytest.raises(LeaseLost, match="already landed"):
        leases.complete("a", EPOCH, "other", 0, 3, 300, now=99.0)


def test_a_lease_read_by_several_ranks_ends_with_the_last_one() -> None:
    leases = table(ranks=2)
    leases.claim("a", EPOCH, "reader", now=1.0)
    assert leases.complete("a", EPOCH, "reader", 0, 3, 150, now=2.0) == ()
    assert leases.complete("a", EPOCH, "reader", 0, 3, 150, now=2.1) == (), "repeated, not to be counted again"
    assert leases.release("a", "reader", rank=0) == (), "rank 0 is done, rank 1 still reads"
    assert leases.complete("a", EPOCH, "reader", 1, 3, 150, now=3.0) == (Free("a", (1, 2, 3)),)
    assert (leases.counts.blocks_sent, leases.counts.bytes_sent) == (3, 300)


def test_an_offer_with_a_used_id_is_a_mistake_of_the_caller() -> None:
    leases = table()
    with pytest.raises(ValueError, match="offered before"):
        leases.offer("a", (9,), now=1.0)


def growing() -> LeaseTable:
    leases = LeaseTable(EPOCH, LEASE_S)
    leases.offer("g", (1, 2), now=0.0, growing=True)
    return leases


def test_a_follower_hears_how_far_the_prompt_has_come_until_no_more_will_come() -> None:
    leases = growing()
    assert leases.follow("g", EPOCH, "reader", now=1.0) == Watermark((1, 2), closed=False, held_s=LEASE_S)
    assert not leases.has_news("g", known_blocks=2)
    assert leases.grow("g", (3,), now=2.0)
    assert leases.has_news("g", known_blocks=2)
    leases.close("g", now=3.0)
    assert leases.has_news("g", known_blocks=3)
    assert leases.follow("g", EPOCH, "reader", now=3.0) == Watermark((1, 2, 3), closed=True, held_s=LEASE_S)
    assert leases.complete("g", EPOCH, "reader", 0, 3, 300, now=4.0) == (Free("g", (1, 2, 3)),)


def test_a_prompt_that_has_no_whole_block_yet_is_no_error_but_another_epoch_is() -> None:
    leases = growing()
    assert leases.follow("later", EPOCH, "reader", now=1.0) is None
    assert not leases.has_news("later", known_blocks=0)
    with pytest.raises(LeaseLost, match="epoch 6"):
        leases.follow("later", EPOCH - 1, "reader", now=1.0)


def test_a_growing_lease_without_a_reader_lives_as_long_as_it_grows_and_ends_soon_after() -> None:
    leases = growing()
    assert leases.grow("g", (3,), now=LEASE_S - 1)
    assert leases.expire(LEASE_S + 1) == ()
    leases.close("g", now=LEASE_S + 1)
    assert leases.expire(LEASE_S + 1 + LINGER_S) == (Free("g", (1, 2, 3)),)
    assert (leases.counts.released, leases.counts.expired) == (1, 0), "nothing that an operator should look into"


def test_a_reader_that_fell_silent_does_not_hold_the_blocks_of_a_prompt_that_goes_on() -> None:
    leases = growing()
    leases.follow("g", EPOCH, "reader", now=1.0)
    assert leases.grow("g", (3,), now=LEASE_S)
    assert leases.expire(1.0 + LEASE_S) == (Free("g", (1, 2, 3)),)
    assert not leases.grow("g", (4,), now=1.0 + LEASE_S), "these blocks stay the writer's"
    leases.close("g", now=1.0 + LEASE_S)
    with pytest.raises(LeaseLost, match="already expired"):
        leases.follow("g", EPOCH, "reader", now=2.0 + LEASE_S)


def test_a_reader_that_has_all_it_wants_need_not_wait_for_the_end_of_the_prompt() -> None:
    leases = growing()
    leases.follow("g", EPOCH, "reader", now=1.0)
    assert leases.complete("g", EPOCH, "reader", 0, 2, 200, now=2.0) == (Free("g", (1, 2)),)
    assert not leases.grow("g", (3,), now=2.0)


def test_whoever_looks_on_can_tell_live_leases_apart_and_not_end_them() -> None:
    read_id, grown_id = "chatcmpl-1/prefill1", "chatcmpl-2/prefill1"
    leases = LeaseTable(EPOCH, LEASE_S)
    leases.offer(read_id, (1, 2, 3), now=0.0)
    leases.offer(grown_id, (4,), now=1.0, growing=True)
    leases.offer("ended", (5,), now=1.0)
    leases.release("ended")
    leases.claim(read_id, EPOCH, "d1/9", now=2.0)
    read, grown = leases.views(now=3.0)
    assert (read.state, read.reader_id, read.blocks) == ("claimed", "d1/9", 3)
    assert (read.age_s, read.left_s, read.growing) == (3.0, LEASE_S - 1.0, False)
    assert (grown.state, grown.age_s, grown.growing) == ("offered", 2.0, True)
    assert len({read.lease, grown.lease}) == 2
    assert (len(read.lease), read.lease in read_id) == (8, False)
    assert leases.views(now=4.0)[0].lease == read.lease, "it keeps its name"
    leases.release(read.lease)
    assert leases.live == 2


def test_leases_that_are_only_remembered_keep_no_block_ids() -> None:
    leases = LeaseTable(EPOCH, lease_s=10.0)
    for i in range(3):
        leases.offer(f"lease-{i}", tuple(range(1000)), now=0.0)
        for free in leases.release(f"lease-{i}"):
            leases.freed(free.lease_id)
    assert {lease.block_ids for lease in leases._past.values()} == {()}
    with pytest.raises(LeaseLost, match="already released"):
        leases.claim("lease-0", EPOCH, "r", 0.0)


def test_counting_does_not_visit_every_pinned_block() -> None:
    """An engine is counted once a second and more, under the lock that readers' calls wait for."""
    leases = LeaseTable(EPOCH, lease_s=10.0)
    leases.offer("a", Unvisited(range(1000)), now=0.0)
    leases.offer("b", Unvisited(range(500, 1500)), now=0.0)
    Unvisited.forbidden = True
    try:
        assert leases.counts.pinned_blocks == 1500
    finally:
        Unvisited.forbidden = False
    leases.check_integrity()


class Unvisited(tuple[int, ...]):
    forbidden = False

    def __iter__(self) -> Iterator[int]:
        assert not self.forbidden, "somebody looks at each block"
        return super().__iter__()
