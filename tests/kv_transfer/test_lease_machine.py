"""The lease machine under any interleaving: several leases, readers and ranks, a writer that restarts, late messages.

The model beside it knows what a table must not know: what is in the blocks. A block that was given back may hold other
content at once (its generation changes); a completion may only be accepted if everything read is still what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import LeaseLost
from kv_transfer.lease import LINGER_S, Free, LeaseTable

LEASE_S = 10.0
BLOCKS = 10
READERS = st.sampled_from(["r1", "r2"])
NUMBERS = st.integers(0, 50)
NEWEST = st.sampled_from([0, 0, 1, 2])
WAYS = st.sampled_from(["at once", "at once", "late", "twice"])


@dataclass
class Pinned:
    """What the model knows of one lease. `content`: generation of each of its blocks when it joined."""

    content: dict[int, int]
    until: float
    open: bool
    reader: str = ""
    finished: dict[int, bool] = field(default_factory=dict)
    freed: bool = False


@dataclass(frozen=True)
class Message:
    """On its way to the writer's address, whoever listens there by then. `told`: the blocks that the reader has read,
    with the generation that they had when it was told of them."""

    kind: str
    lease_id: str
    epoch: int
    reader: str
    rank: int = 0
    told: tuple[tuple[int, int], ...] = ()


class LeaseMachine(RuleBasedStateMachine):
    @initialize(ranks=st.integers(1, 2))
    def begin(self, ranks: int) -> None:
        self.ranks = ranks
        self.now = 0.0
        self.epoch = 0
        self.generation = [0] * BLOCKS
        self.messages: list[Message] = []
        self.told: dict[tuple[str, int, str], tuple[tuple[int, int], ...]] = {}
        self.start_writer()

    def start_writer(self) -> None:
        self.epoch += 1
        self.names = 0
        self.table = LeaseTable(self.epoch, LEASE_S, self.ranks)
        self.leases: dict[str, Pinned] = {}
        self.waiting: list[Free] = []  # ended, but not given back yet
        self.held = [0] * BLOCKS
        self.offer(0, 2, growing=False)
        self.offer(1, 2, growing=True)

    # The writer

    @precondition(lambda self: sum(not lease.freed for lease in self.leases.values()) < 3)
    @rule(first=NUMBERS, count=st.integers(1, 3), growing=st.booleans())
    def offer(self, first: int, count: int, growing: bool) -> None:
        """Leases may share blocks, as prompts share prefixes."""
        blocks = tuple((first + i) % BLOCKS for i in range(count))
        lease_id = f"lease {self.names}"
        self.names += 1
        self.table.offer(lease_id, blocks, self.now, growing=growing)
        self.leases[lease_id] = Pinned(self.pin(blocks), self.now + LEASE_S, growing)

    @precondition(lambda self: self.growing)
    @rule(number=NUMBERS, block=st.integers(0, BLOCKS - 1))
    def grow(self, number: int, block: int) -> None:
        lease_id = self.growing[number % len(self.growing)]
        lease = self.leases[lease_id]
        if block in lease.content:
            return
        accepted = self.table.grow(lease_id, (block,), self.now)
        assert accepted is not lease.freed, "grew after its end, or did not grow before it"
        if accepted:
            lease.content |= self.pin((block,))
            lease.until = lease.until if lease.reader else self.now + LEASE_S

    @precondition(lambda self: self.growing)
    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        lease_id = self.growing[number % len(self.growing)]
        lease = self.leases[lease_id]
        self.table.close(lease_id, self.now)
        lease.open = False
        if not lease.reader:
            lease.until = min(lease.until, self.now + LINGER_S)

    @rule()
    def take_back(self) -> None:
        """On the engine's own thread, some time after the lease has ended."""
        while self.waiting:
            free = self.waiting.pop()
            self.table.freed(free.lease_id)
            for block in free.block_ids:
                self.held[block] -= 1
                self.generation[block] += self.held[block] == 0

    @precondition(lambda self: self.epoch < 3 and self.messages)
    @rule()
    def restart_writer(self) -> None:
        """At the same address: what was sent to the old one arrives at the new one, where the ids may be the same."""
        self.generation = [generation + 1 for generation in self.generation]
        self.start_writer()

    @rule(seconds=st.sampled_from([0.0, LINGER_S, LEASE_S / 2, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.take(self.table.expire(self.now), by="")
        overdue = [lease_id for lease_id, lease in self.leases.items() if not lease.freed and lease.until <= self.now]
        assert not overdue, f"{overdue} live on after their time"

    # Readers: their messages arrive at once, late, twice, in any order or never.

    @rule(number=NEWEST, reader=READERS, way=WAYS)
    def claims(self, number: int, reader: str, way: str) -> None:
        self.send("claim", number, reader, 0, way)

    @rule(number=NEWEST, reader=READERS, way=WAYS)
    def follows(self, number: int, reader: str, way: str) -> None:
        self.send("follow", number, reader, 0, way)

    @rule(number=NEWEST, reader=READERS, rank=st.integers(0, 1), way=WAYS)
    def completes(self, number: int, reader: str, rank: int, way: str) -> None:
        self.send("complete", number, reader, rank, way)

    @rule(number=NEWEST, reader=READERS, way=WAYS)
    def completes_all_ranks(self, number: int, reader: str, way: str) -> None:
        for rank in range(self.ranks):
            self.send("complete", number, reader, rank, way)

    @rule(number=NEWEST, reader=st.sampled_from(["", "r1", "r2"]), rank=st.integers(0, 1), way=WAYS)
    def releases(self, number: int, reader: str, rank: int, way: str) -> None:
        """Without a reader: the router has no use for the lease (any more)."""
        self.send("release", number, reader, rank, way)

    @precondition(lambda self: self.messages)
    @rule()
    def late_messages_arrive(self) -> None:
        messages, self.messages = self.messages, []
        for message in messages:
            self.arrive(message)

    @precondition(lambda self: self.messages)
    @rule(reader=READERS)
    def reader_dies(self, reader: str) -> None:
        self.messages = [message for message in self.messages if message.reader != reader]

    def send(self, kind: str, number: int, reader: str, rank: int, way: str) -> None:
        lease_id = self.recent(number)
        told = self.told.get((lease_id, self.epoch, reader), ())
        message = Message(kind, lease_id, self.epoch, reader, rank % self.ranks, told)
        if way != "late":
            self.arrive(message)
        if way != "at once":
            self.messages.append(message)

    def arrive(self, message: Message) -> None:
        getattr(self, f"on_{message.kind}")(message)

    def recent(self, number: int) -> str:
        newest_first = list(reversed(self.leases))
        return newest_first[number % len(newest_first)]

    def on_claim(self, message: Message) -> None:
        may = self.may_read(message)
        try:
            self.table.claim(message.lease_id, message.epoch, message.reader, self.now)
        except LeaseLost:
            assert not may, "refused a reader that had a right to it"
            return
        assert may, "let a reader in that had no right to it"
        self.grant(message)

    def on_follow(self, message: Message) -> None:
        may = self.may_read(message)
        try:
            mark = self.table.follow(message.lease_id, message.epoch, message.reader, self.now)
        except LeaseLost:
            assert not may, "refused a reader that had a right to it"
            return
        assert mark is not None, "a lease that was offered is not known"
        lease = self.leases[message.lease_id]
        assert may
        assert (set(mark.block_ids), mark.closed) == (set(lease.content), not lease.open)
        self.grant(message)

    def on_complete(self, message: Message) -> None:
        lease = self.leases.get(message.lease_id) if message.epoch == self.epoch else None
        repeated = lease is not None and lease.reader == message.reader and lease.finished.get(message.rank, False)
        may = lease is not None and lease.reader == message.reader and self.may_read(message)
        try:
            frees = self.table.complete(
                message.lease_id, message.epoch, message.reader, message.rank, len(message.told), 64, self.now
            )
        except LeaseLost:
            assert not may, "refused a completion in time"
            assert not repeated, "refused to repeat an answer"
            return
        assert lease is not None, "accepted the completion of another epoch"
        assert may or repeated, "accepted a read that no lease covered"
        if not repeated and message.rank not in lease.finished:
            self.check_content(message)
            lease.finished[message.rank] = True
        self.take(frees, by=message.reader)

    def on_release(self, message: Message) -> None:
        # A release names no epoch. Should an old one meet a lease of the same id, that ends early, but safely.
        lease = self.leases.get(message.lease_id)
        if lease is not None and message.reader and lease.reader == message.reader and not lease.freed:
            lease.finished.setdefault(message.rank, False)
        self.take(self.table.release(message.lease_id, message.reader, message.rank), by=message.reader)

    # The model

    @property
    def growing(self) -> list[str]:
        return [lease_id for lease_id, lease in self.leases.items() if lease.open]

    def pin(self, blocks: tuple[int, ...]) -> dict[int, int]:
        for block in blocks:
            self.held[block] += 1
        return {block: self.generation[block] for block in blocks}

    def may_read(self, message: Message) -> bool:
        lease = self.leases.get(message.lease_id)
        if lease is None or message.epoch != self.epoch or lease.freed or self.now >= lease.until:
            return False
        return lease.reader in ("", message.reader)

    def grant(self, message: Message) -> None:
        lease = self.leases[message.lease_id]
        lease.reader, lease.until = message.reader, self.now + LEASE_S
        self.told[message.lease_id, message.epoch, message.reader] = tuple(lease.content.items())

    def check_content(self, message: Message) -> None:
        for block, generation in message.told:
            assert self.generation[block] == generation, f"accepted a read of block {block}, which was given away"

    def take(self, frees: tuple[Free, ...], by: str) -> None:
        for free in frees:
            lease = self.leases[free.lease_id]
            assert not lease.freed, "freed twice"
            assert set(free.block_ids) == set(lease.content), "freed other blocks than were pinned"
            done = len(lease.finished) == self.ranks
            over = lease.until <= self.now
            assert over or not lease.reader or (lease.reader == by and done), "ended while it was promised"
            lease.freed = True
            self.waiting.append(free)

    @invariant()
    def adds_up(self) -> None:
        self.table.check_integrity()
        counts = self.table.counts
        assert counts.live == sum(not lease.freed for lease in self.leases.values())
        assert counts.pending == len(self.waiting)
        assert counts.pinned_blocks == sum(held > 0 for held in self.held)
        assert {block: held for block, held in enumerate(self.held) if held} == self.table.pins()

    def teardown(self) -> None:
        self.now += 3 * LEASE_S
        self.expire()
        self.take_back()
        assert self.table.counts.live == self.table.counts.pinned_blocks == 0, "something is left for ever"


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=300, stateful_step_count=40)
