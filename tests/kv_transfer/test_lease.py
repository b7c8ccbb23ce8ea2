"""The lease machine alone: single transitions by example, interleavings by hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.errors import LeaseLost
from kv_transfer.lease import Free, LeaseTable

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


READERS = st.sampled_from(["r1", "r2"])
EPOCHS = st.sampled_from([EPOCH, EPOCH, EPOCH, EPOCH - 1])
NUMBERS = st.integers(0, 5)


class LeaseInterleavings(RuleBasedStateMachine):
    """Readers, owners and the clock act in any order. The model remembers who holds a promise until when, and what
    was freed."""

    @initialize(ranks=st.integers(1, 2))
    def begin(self, ranks: int) -> None:
        self.ranks = ranks
        self.table = LeaseTable(EPOCH, LEASE_S, ranks)
        self.now = 0.0
        self.offered = 0
        self.freed: set[str] = set()
        self.waiting: list[str] = []
        self.promised: dict[str, tuple[str, float]] = {}
        self.done: dict[str, set[int]] = {}

    def take(self, frees: tuple[Free, ...], by: str = "") -> None:
        for free in frees:
            assert free.lease_id not in self.freed, "freed twice"
            assert free.block_ids == (int(free.lease_id), int(free.lease_id) + 1)
            reader, until = self.promised.get(free.lease_id, ("", 0.0))
            finished = len(self.done.get(free.lease_id, ())) == self.ranks
            assert not reader or until <= self.now or (reader == by and finished), "freed while it was promised"
            self.freed.add(free.lease_id)
            self.waiting.append(free.lease_id)

    def pick(self, number: int) -> str:
        return str(number % (self.offered + 1))  # the highest is unknown

    @rule()
    def offer(self) -> None:
        self.table.offer(str(self.offered), (self.offered, self.offered + 1), self.now)
        self.offered += 1

    @rule(number=NUMBERS, reader=READERS, epoch=EPOCHS)
    def claim(self, number: int, reader: str, epoch: int) -> None:
        lease = self.pick(number)
        try:
            ttl = self.table.claim(lease, epoch, reader, self.now)
        except LeaseLost:
            return
        assert epoch == EPOCH
        assert lease not in self.freed
        assert self.promised.get(lease, (reader, 0))[0] == reader
        self.promised[lease] = (reader, self.now + ttl)

    @rule(number=NUMBERS, reader=READERS, epoch=EPOCHS, rank=st.integers(0, 1))
    def complete(self, number: int, reader: str, epoch: int, rank: int) -> None:
        lease, rank = self.pick(number), rank % self.ranks
        before = set(self.done.get(lease, ()))
        holds = self.promised.get(lease, ("", 0.0))
        try:
            self.done.setdefault(lease, set()).add(rank)
            frees = self.table.complete(lease, epoch, reader, rank, 2, 64, self.now)
        except LeaseLost:
            self.done[lease] = before
            return
        assert epoch == EPOCH
        assert holds[0] == reader
        assert rank in before or holds[1] > self.now, "accepted a read that the lease did not cover"
        self.take(frees, by=reader)

    @rule(number=NUMBERS, reader=st.sampled_from(["", "r1", "r2"]), rank=st.integers(0, 1))
    def release(self, number: int, reader: str, rank: int) -> None:
        lease, rank = self.pick(number), rank % self.ranks
        if self.promised.get(lease, ("",))[0] == reader != "":
            self.done.setdefault(lease, set()).add(rank)
        self.take(self.table.release(lease, reader, rank), by=reader)

    @rule(seconds=st.sampled_from([0.0, 1.0, LEASE_S / 2, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.take(self.table.expire(self.now))

    @rule()
    def take_back(self) -> None:
        while self.waiting:
            self.table.freed(self.waiting.pop())

    @invariant()
    def adds_up(self) -> None:
        self.table.check_integrity()
        counts = self.table.counts
        assert counts.live == self.offered - len(self.freed)
        assert counts.pending == len(self.waiting)

    def teardown(self) -> None:
        self.now += 3 * LEASE_S
        self.expire()
        self.take_back()
        assert self.table.counts.live == self.table.counts.pinned_blocks == 0, "something is left for ever"


TestLeaseInterleavings = LeaseInterleavings.TestCase
