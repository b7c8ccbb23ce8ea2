"""Who may read which pinned blocks, and until when: the pure state of all leases of one engine epoch.

Transitions take the time and return what must be given back (`Free`); they do no I/O and hold no lock. What a block
or an engine is, they do not know: block ids are numbers. `LeaseBook` shares the table between threads.

    OFFERED ──claim──▶ CLAIMED ──renewed, or a rank is done──▶ MOVING ──last rank done──▶ LANDED (all ranks read it)
       │                  │                                      │                  └───▶ RELEASED (some gave up)
       └─ release by anyone ─▶ RELEASED        in any of the three: deadline passed ─▶ EXPIRED

    beside it, for a prompt that is still being computed:   open ──grow──▶ open with more blocks ──close──▶ closed

An ended lease stays in the table as long as its blocks do: until `freed`; then it is remembered without them. Between a
claim and its deadline only the claimant can end a lease. Completion is judged by the time of the call, whether or not
`expire` has run. While nobody has claimed an open lease, each growth renews it; closed without a reader, it soon ends.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from cluster.errors import LeaseLost

# How many ended leases are remembered, to answer a repeated completion and to say why a late message is refused.
_REMEMBERED = 4096
# How long a grown lease that nobody has claimed waits for its reader after it was closed, seconds. Whoever comes later
# has the ticket of the finished prompt.
LINGER_S = 1.0
_NAME_BYTES = 4


class LeaseState(Enum):
    OFFERED = "offered"
    CLAIMED = "claimed"
    MOVING = "moving"
    LANDED = "landed"
    RELEASED = "released"
    EXPIRED = "expired"


_ENDED = frozenset({LeaseState.LANDED, LeaseState.RELEASED, LeaseState.EXPIRED})


@dataclass(frozen=True, slots=True)
class Free:
    """To be done by whoever owns the blocks, once: give them back, then call `freed`."""

    lease_id: str
    block_ids: tuple[int, ...]


@dataclass(slots=True)
class Lease:
    """`finished` maps each rank of the reader that is done to whether it has read everything. `open`: blocks may still
    be added at the end. `lingering`: it was closed without a reader, and one may come yet."""

    lease_id: str
    block_ids: tuple[int, ...]
    deadline: float
    since: float
    open: bool = False
    lingering: bool = False
    state: LeaseState = LeaseState.OFFERED
    reader_id: str = ""
    finished: dict[int, bool] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a growing lease has come. `closed`: no block will follow. `held_s`: for how long the reader has it."""

    block_ids: tuple[int, ...]
    closed: bool
    held_s: float


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One live lease, for whoever looks on. `lease`: a short name made from its id, by which nobody can end it.
    `left_s`: until it ends, if nobody renews it. `growing`: its prompt is still being computed."""

    lease: str
    state: str
    reader_id: str
    blocks: int
    age_s: float
    left_s: float
    growing: bool


@dataclass(frozen=True, slots=True)
class LeaseCounts:
    """`live` leases can still be read; `pending` ones have ended but their blocks are still pinned. `pinned_blocks`
    counts each block once, however many leases hold it."""

    live: int
    pending: int
    pinned_blocks: int
    offered: int
    released: int
    expired: int
    blocks_sent: int
    bytes_sent: int


class LeaseTable:
    """All leases of one epoch. `ranks`: how many ranks of a reader must finish before a lease ends."""

    def __init__(self, epoch: int, lease_s: float, ranks: int = 1) -> None:
        self._epoch = epoch
        self._lease_s = lease_s
        self._ranks = ranks
        self._leases: dict[str, Lease] = {}
        self._past: OrderedDict[str, Lease] = OrderedDict()
        self._pins: dict[int, int] = {}  # how many leases hold each pinned block
        self._earliest = float("inf")  # no live lease ends before; a lower bound, renewals do not raise it
        self._offered = self._released = self._expired = self._blocks_sent = self._bytes_sent = 0

    def __repr__(self) -> str:
        return f"<LeaseTable epoch={self._epoch} {self.counts}>"

    def offer(self, lease_id: str, block_ids: tuple[int, ...], now: float, *, growing: bool = False) -> None:
        """Opens a lease, `growing` or on all the blocks it will ever have. The id must be new; raises ValueError
        otherwise."""
        if lease_id in self._leases or lease_id in self._past:
            raise ValueError(f"lease {lease_id} was offered before")
        lease = Lease(lease_id, block_ids, now + self._lease_s, now, growing)
        self._leases[lease_id] = lease
        self._pin(block_ids)
        self._earliest = min(self._earliest, lease.deadline)
        self._offered += 1

    def grow(self, lease_id: str, block_ids: tuple[int, ...], now: float) -> bool:
        """Adds blocks to an open lease. False: it has ended meanwhile, and these blocks are not its own."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.ended:
            return False
        assert lease.open, f"lease {lease_id} was closed and grows"
        lease.block_ids += block_ids
        self._pin(block_ids)
        if lease.state is LeaseState.OFFERED:
            lease.deadline = now + self._lease_s
        return True

    def close(self, lease_id: str, now: float) -> None:
        """No block will follow. Without a reader the lease ends soon. One that has ended stays as it is."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.ended or not lease.open:
            return
        lease.open = False
        if lease.state is LeaseState.OFFERED:
            lease.lingering = True
            lease.deadline = min(lease.deadline, now + LINGER_S)
            self._earliest = min(self._earliest, lease.deadline)

    def has_news(self, lease_id: str, known_blocks: int) -> bool:
        """Whether a reader that knows so many blocks would hear anything new from `follow`."""
        lease = self._leases.get(lease_id) or self._past.get(lease_id)
        return lease is not None and (lease.ended or not lease.open or len(lease.block_ids) > known_blocks)

    def follow(self, lease_id: str, epoch: int, reader_id: str, now: float) -> Watermark | None:
        """Claims or renews, and tells how far the lease has come; None while there is none of this id. Raises
        `LeaseLost`."""
        if epoch == self._epoch and lease_id not in self._leases and lease_id not in self._past:
            return None
        held_s = self.claim(lease_id, epoch, reader_id, now)
        lease = self._leases[lease_id]
        return Watermark(lease.block_ids, not lease.open, held_s)

    def claim(self, lease_id: str, epoch: int, reader_id: str, now: float) -> float:
        """Gives the lease to the reader, or renews it, and returns for how many seconds. Raises `LeaseLost`."""
        lease = self._readable(lease_id, epoch, now)
        if lease.reader_id not in ("", reader_id):
            raise LeaseLost(f"lease {lease_id} is being read by {lease.reader_id}")
        lease.state = LeaseState.MOVING if lease.reader_id else LeaseState.CLAIMED
        lease.reader_id = reader_id
        lease.deadline = now + self._lease_s
        return self._lease_s

    def complete(
        self, lease_id: str, epoch: int, reader_id: str, rank: int, blocks: int, size: int, now: float
    ) -> tuple[Free, ...]:
        """One rank has read its `size` bytes of `blocks` blocks. Raises `LeaseLost`: they must not be used."""
        known = self._leases.get(lease_id) or self._past.get(lease_id)
        if known is not None and epoch == self._epoch and known.reader_id == reader_id and known.finished.get(rank):
            return ()  # the answer to the first completion was lost
        lease = self._readable(lease_id, epoch, now)
        if lease.reader_id != reader_id:
            raise LeaseLost(f"lease {lease_id} was never claimed by {reader_id}")
        if rank in lease.finished:
            return ()
        self._blocks_sent += 0 if lease.finished else blocks  # every rank reads its own part of the same blocks
        self._bytes_sent += size
        return self._finish(lease, rank, landed=True)

    def release(self, lease_id: str, reader_id: str = "", rank: int = 0) -> tuple[Free, ...]:
        """The lease will not be read (any more). A claimed one is only its reader's to release; otherwise nothing
        happens."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.ended:
            return ()
        if lease.state is LeaseState.OFFERED:
            return self._end(lease, LeaseState.RELEASED)
        if lease.reader_id != reader_id or rank in lease.finished:
            return ()
        return self._finish(lease, rank, landed=False)

    def expire(self, now: float) -> tuple[Free, ...]:
        """Ends every lease whose time is over."""
        if now < self._earliest:
            return ()
        late = [lease for lease in self._leases.values() if not lease.ended and lease.deadline <= now]
        frees = tuple(free for lease in late for free in self._end(lease, _end_by_time(lease)))
        live = (lease.deadline for lease in self._leases.values() if not lease.ended)
        self._earliest = min(live, default=float("inf"))
        return frees

    def freed(self, lease_id: str) -> None:
        """The blocks of an ended lease have been given back."""
        lease = self._leases[lease_id]
        assert lease.ended, f"lease {lease_id} was freed while {lease.state.value}"
        self._unpin(lease.block_ids)
        lease.block_ids = ()
        self._past[lease_id] = self._leases.pop(lease_id)
        if len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)

    @property
    def live(self) -> int:
        """Leases that can still be read."""
        return self._offered - self._released - self._expired

    @property
    def counts(self) -> LeaseCounts:
        return LeaseCounts(
            live=self.live,
            pending=len(self._leases) - self.live,
            pinned_blocks=len(self._pins),
            offered=self._offered,
            released=self._released,
            expired=self._expired,
            blocks_sent=self._blocks_sent,
            bytes_sent=self._bytes_sent,
        )

    def views(self, now: float) -> tuple[LeaseView, ...]:
        """The live ones, oldest first."""
        return tuple(_view(lease, now) for lease in self._leases.values() if not lease.ended)

    def pins(self) -> dict[int, int]:
        """How many leases hold each pinned block, by block id; counted anew."""
        held: dict[int, int] = {}
        for lease in self._leases.values():
            for block_id in lease.block_ids:
                held[block_id] = held.get(block_id, 0) + 1
        return held

    def check_integrity(self) -> None:
        """Recounts every lease. AssertionError: the table contradicts itself."""
        counts = self.counts
        pending = dict.fromkeys(_ENDED, 0)
        for lease in self._leases.values():
            if lease.ended:
                pending[lease.state] += 1
            assert (lease.state is LeaseState.OFFERED) <= (not lease.reader_id), f"{lease}: offered, but has a reader"
            assert lease.ended or lease.deadline >= self._earliest, f"{lease}: would expire unseen"
            assert lease.ended or len(lease.finished) < self._ranks, f"{lease}: all ranks are done, but it lives"
        assert counts.live == sum(not lease.ended for lease in self._leases.values()), f"{counts}: a lease was lost"
        assert counts.pending == sum(pending.values()), f"{counts}: pending does not add up"
        assert self._pins == self.pins(), f"{counts}: blocks are pinned otherwise than the leases say"

    def _pin(self, block_ids: tuple[int, ...]) -> None:
        for block_id in block_ids:
            self._pins[block_id] = self._pins.get(block_id, 0) + 1

    def _unpin(self, block_ids: tuple[int, ...]) -> None:
        for block_id in block_ids:
            self._pins[block_id] -= 1
            if not self._pins[block_id]:
                del self._pins[block_id]

    def _readable(self, lease_id: str, epoch: int, now: float) -> Lease:
        if epoch != self._epoch:
            raise LeaseLost(f"lease {lease_id} is of epoch {epoch}, the engine's is {self._epoch}")
        lease = self._leases.get(lease_id) or self._past.get(lease_id)
        if lease is None:
            raise LeaseLost(f"lease {lease_id} is unknown")
        if lease.ended:
            raise LeaseLost(f"lease {lease_id} has already {lease.state.value}")
        if lease.deadline <= now:
            raise LeaseLost(f"lease {lease_id} expired {now - lease.deadline:.3f} s ago")
        return lease

    def _finish(self, lease: Lease, rank: int, landed: bool) -> tuple[Free, ...]:
        lease.finished[rank] = landed
        lease.state = LeaseState.MOVING
        if len(lease.finished) < self._ranks:
            return ()
        return self._end(lease, LeaseState.LANDED if all(lease.finished.values()) else LeaseState.RELEASED)

    def _end(self, lease: Lease, state: LeaseState) -> tuple[Free, ...]:
        lease.state = state
        self._expired += state is LeaseState.EXPIRED
        self._released += state is not LeaseState.EXPIRED
        return (Free(lease.lease_id, lease.block_ids),)


def _view(lease: Lease, now: float) -> LeaseView:
    return LeaseView(
        lease=_name(lease.lease_id),
        state=lease.state.value,
        reader_id=lease.reader_id,
        blocks=len(lease.block_ids),
        age_s=now - lease.since,
        left_s=max(0.0, lease.deadline - now),
        growing=lease.open,
    )


def _name(lease_id: str) -> str:
    """Whoever knows the id can end the lease; and many ids begin alike, as those of attempts do."""
    return hashlib.blake2b(lease_id.encode(), digest_size=_NAME_BYTES).hexdigest()


def _end_by_time(lease: Lease) -> LeaseState:
    """That nobody follows a prompt is nothing to worry about: its ticket has a lease of its own."""
    nobody_came = lease.lingering and lease.state is LeaseState.OFFERED
    return LeaseState.RELEASED if nobody_came else LeaseState.EXPIRED
