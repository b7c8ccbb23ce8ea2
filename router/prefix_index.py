"""Which worker holds which blocks, in one map for all: block name -> set of workers, walked once for a prompt.

Workers say what they hold, and are right. A guess, that a worker will soon hold the prompt just sent there, stands
beside that on a bit of its own until it expires. Memory is bounded: past the bound, guesses go first, then what nobody
has asked for or stored again for longest. It must not know the wire, load or costs.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from router.block_table import ABSENT, NO_SLOT, BlockTable, Keys, Slots, Values
from router.holder_bits import Holder, HolderBits
from router.holder_sets import HolderSets

Counts = npt.NDArray[np.int32]
Hashes = Sequence[int] | Keys

_MATCH_BLOCKS = 512  # looked up at once: a long prompt that nobody holds is not looked up to its end
_SINGLY = 6  # up to so many blocks it is faster to go one by one
_SWEEP_SETS = 4_096
_SWEEP_SLOTS = 65_536
_EVICT_SHARE = 256
_FIRST = np.zeros(1, np.intp)


class PrefixIndex:
    """`most_blocks` bounds the unique blocks of all workers together. A guess lasts between one and two times
    `guess_s`. `row`, here and in other parts of the router, is a worker's place in arrays with one element for each
    worker."""

    def __init__(self, most_blocks: int, guess_s: float) -> None:
        self._table = BlockTable(most_blocks)
        self._sets = HolderSets()
        self._bits = HolderBits()
        self._holders: dict[str, Holder] = {}
        self._rows = 0
        self._guess_s = guess_s
        self._guesses_fade_at = 0.0
        self._sweeping: Iterator[None] | None = None
        self.evicted = 0
        self.suspects: set[str] = set()

    def __len__(self) -> int:
        """Unique blocks in the map."""
        return len(self._table)

    @property
    def capacity(self) -> int:
        """The most that it can hold."""
        return self._table.capacity

    # Workers

    def add(self, worker_id: str, row: int, most_blocks: int) -> None:
        """A worker that holds nothing yet, and never more than `most_blocks`. A known one begins anew."""
        self.worker_gone(worker_id)
        self._rows = max(self._rows, row + 1)
        holder = Holder(row, most_blocks)
        holder.bit = self._bits.give(holder, firm=True)
        self._holders[worker_id] = holder

    def worker_gone(self, worker_id: str) -> None:
        """Its blocks no longer match from now on; `sweep` gives their memory back. Unknown ids are no error."""
        if holder := self._holders.pop(worker_id, None):
            self._bits.retire(holder.bits)
        self.suspects.discard(worker_id)

    # What workers say of themselves: nothing in it raises, what an unknown worker says is left out

    def blocks_cleared(self, worker_id: str) -> None:
        """The worker holds nothing, as far as is known: a snapshot begins. Takes the same time however much it held."""
        if holder := self._holders.get(worker_id):
            self.add(worker_id, holder.row, holder.most_blocks)

    def blocks_stored(self, worker_id: str, hashes: Hashes) -> None:
        """A worker that says it holds more than it can is not believed in what is over, and is among the `suspects`
        until it begins anew."""
        holder = self._holders.get(worker_id)
        if holder is None or not len(hashes):
            return
        keys = _keys(hashes)
        if holder.held + len(keys) > holder.most_blocks:
            keys = self._believable(worker_id, holder, keys)
        self._change(keys, add=holder.bit, drop=0)

    def blocks_removed(self, worker_id: str, hashes: Hashes) -> None:
        """Whatever was guessed of these blocks is wrong, too. Blocks that are not there are no error."""
        holder = self._holders.get(worker_id)
        if holder is not None and len(hashes):
            self._change(_keys(hashes), add=0, drop=holder.bits)

    # What the router expects

    def expect(self, worker_id: str, hashes: Hashes) -> None:
        """The worker was just sent a prompt of these blocks, from the first on. Unknown workers are no error."""
        holder = self._holders.get(worker_id)
        if holder is None or not len(hashes):
            return
        holder.guess = holder.guess or self._bits.give(holder, firm=False)
        self._change(_keys(hashes), add=holder.guess, drop=0)

    def on_time(self, now: float) -> None:
        """Lets old guesses go. To be called about once a second."""
        if now < self._guesses_fade_at:
            return
        self._guesses_fade_at = now + self._guess_s
        for holder in self._holders.values():
            self._bits.retire(holder.faded)
            holder.guess, holder.faded = 0, holder.guess

    # Questions

    def match(self, hashes: Hashes) -> Counts:
        """For each row, how many of the first blocks its worker holds, or is expected to; 0 where there is none."""
        counts = np.zeros(self._rows, np.int32)
        held, masks, keys = self._bits.live, self._sets.masks, _keys(hashes)
        for start in range(0, len(keys), _MATCH_BLOCKS):
            values, slots = self._table.find(keys[start : start + _MATCH_BLOCKS], leading=True)
            self._table.touch(slots)
            for run, value in _runs(values):
                rest = held & masks[value]
                if rest != held and start + run:
                    # Later calls write larger numbers: of a worker's bits, the one that goes furthest counts.
                    counts[self._bits.rows(held & ~rest)] = start + run
                held = rest
                if not held:
                    return counts
        counts[self._bits.rows(held)] = len(keys)
        return counts

    def fill(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """How full each worker's cache is, 0 to 1, by what it says it holds."""
        filled: npt.NDArray[np.float64] = self._bits.fill.take(rows)
        return filled

    def held_by(self, worker_id: str) -> int:
        """Blocks that the worker says it holds, less those that were evicted here. KeyError for an unknown id."""
        return self._holders[worker_id].held

    # Memory

    def sweep(self) -> bool:
        """One short step, about a millisecond, of giving back what retired bits still take; False when none is left."""
        if self._sweeping is None and self._bits.retired:
            self._sweeping = self._sweep(self._bits.retired)
        if self._sweeping is not None and next(self._sweeping, self) is self:
            self._sweeping = None
        return self._sweeping is not None or self._bits.retired != 0

    def check_integrity(self, snapshots: Mapping[str, Collection[int]] | None = None) -> None:
        """Recounts itself and, where they are given, compares itself with what workers say they hold now. A block is
        missing without fault only if blocks were evicted. Raises AssertionError on a difference."""
        self._table.check_integrity()
        entries = dict(self._entries())
        uses: dict[int, int] = {}
        for value in entries.values():
            uses[value] = uses.get(value, 0) + 1
        self._sets.check_integrity(uses)
        for worker_id, holder in self._holders.items():
            known = {key for key, value in entries.items() if self._sets.masks[value] & holder.bit}
            assert len(known) == holder.held <= holder.most_blocks, (
                f"{worker_id}: {len(known)} blocks, not {holder.held}"
            )
            assert abs(self._bits.fill[holder.row] * holder.most_blocks - holder.held) < 0.5, f"{worker_id}: fill"
            if snapshots is not None:
                said = {key or 1 for key in snapshots[worker_id]}
                assert known <= said, f"{worker_id} does not hold {len(known - said)} of the blocks known here"
                assert self.evicted or known == said, f"{len(said - known)} blocks of {worker_id} are not known here"

    # Inside: changes

    def _change(self, keys: Keys, add: int, drop: int) -> None:
        """Puts `add` into the sets of these blocks and takes `drop` out."""
        keep = self._bits.live & ~drop
        if len(keys) <= _SINGLY:
            for key in keys.tolist():
                self._change_one(key, add, keep)
            return
        keys = np.unique(keys)
        for start in range(0, len(keys), self._table.capacity):
            self._change_many(keys[start : start + self._table.capacity], add, keep)

    def _change_one(self, key: int, add: int, keep: int) -> None:
        old = self._table.get(key)
        if not (old or add):
            return
        if not old:
            self._make_room(1)
        if new := self._moved(old, add, keep, 1):
            self._table.put(key, new)
        else:
            self._table.remove(key)

    def _change_many(self, keys: Keys, add: int, keep: int) -> None:
        values, slots = self._table.find(keys)
        while add and self._make_room(int(np.count_nonzero(slots == ABSENT))):
            values, slots = self._table.find(keys)  # some of these may have gone
        before, which, blocks = np.unique(values, return_inverse=True, return_counts=True)
        after = [
            self._moved(old, add, keep, count) for old, count in zip(before.tolist(), blocks.tolist(), strict=True)
        ]
        changed = np.array(after, np.uint32)[which]
        stays, gone = changed != 0, (changed == 0) & (values != 0)
        if stays.any():
            self._table.put_many(keys[stays], changed[stays], slots[stays])
        if gone.any():
            self._table.remove_slots(slots[gone & (slots != NO_SLOT)])
            for key in keys[gone & (slots == NO_SLOT)].tolist():
                self._table.remove(key)

    def _moved(self, old: int, add: int, keep: int, blocks: int) -> int:
        """The set that so many blocks of set `old` have from now on; the counts are put right."""
        mask = self._sets.masks[old]
        changed = mask & keep | add
        if changed == mask:
            return old
        new = self._sets.number(changed)
        self._sets.move(old, new, blocks)
        self._bits.count(changed & ~mask & self._bits.firm, blocks)
        self._bits.count(mask & ~changed & self._bits.firm, -blocks)
        return new

    def _believable(self, worker_id: str, holder: Holder, keys: Keys) -> Keys:
        """Only what fits into the worker's own pool."""
        keys = np.unique(keys)
        numbers = self._table.find(keys)[0].tolist()
        has = np.fromiter((self._sets.masks[number] & holder.bit != 0 for number in numbers), np.bool_, len(keys))
        new, room = keys[~has], holder.most_blocks - holder.held
        if len(new) > room:
            self.suspects.add(worker_id)
        return np.concatenate([keys[has], new[:room]])

    # Inside: what goes

    def _make_room(self, blocks: int) -> bool:
        """Evicts until so many more fit; True when something went."""
        over = len(self._table) + blocks - self._table.capacity
        went = over > 0
        while over > 0:
            self._evict(over)
            over = len(self._table) + blocks - self._table.capacity
        return went

    def _evict(self, wanted: int) -> None:
        """Of the entries that the hand passes, guesses go; where they are not enough, also those that nobody spoke of
        again since it last came by, and a few more than must, so that not each new block moves the hand."""
        slots, values, stale = self._table.pass_hand()
        masks, firm = self._sets.masks, self._bits.firm
        numbers, which = np.unique(values, return_inverse=True)
        loose = np.array([not masks[number] & firm for number in numbers.tolist()], np.bool_)[which]
        gone = np.flatnonzero(loose)
        if len(gone) < wanted:
            firmly_held = np.flatnonzero(stale & ~loose)[: max(wanted, self._table.capacity // _EVICT_SHARE)]
            self.evicted += len(firmly_held)
            gone = np.concatenate([gone, firmly_held])
        self._remove(slots[gone], values[gone])

    def _sweep(self, gone: int) -> Iterator[None]:
        """New sets are made of live bits only, so what is retired meanwhile waits for the next sweep."""
        sets, empty = self._sets, set()
        for start in range(1, len(sets.masks), _SWEEP_SETS):
            empty |= sets.take_away(range(start, min(start + _SWEEP_SETS, len(sets.masks))), gone)
            yield
        for slots, values in self._table.parts(_SWEEP_SLOTS) if empty else ():
            # Numbers may have been taken for other sets since the last step.
            numbers = np.fromiter((number for number in empty if not sets.masks[number]), np.uint32)
            dead = np.isin(values, numbers)
            self._remove(slots[dead], values[dead])
            yield
        for key, value in self._table.overflow() if empty else ():
            if value in empty and not sets.masks[value]:
                self._table.remove(key)
                sets.move(value, 0, 1)
        self._bits.free(gone)

    def _remove(self, slots: Slots, values: Values) -> None:
        numbers, counts = np.unique(values, return_counts=True)
        for number, blocks in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._bits.count(self._sets.masks[number] & self._bits.firm, -blocks)
            self._sets.move(number, 0, blocks)
        self._table.remove_slots(slots)

    def _entries(self) -> Iterator[tuple[int, int]]:
        for slots, values in self._table.parts(_SWEEP_SLOTS):
            yield from zip(self._table.keys_at(slots), values.tolist(), strict=True)
        yield from self._table.overflow()


def _keys(hashes: Hashes) -> Keys:
    """As the table takes them. 0 is no key there, so it stands for 1: two blocks with one name cost time at most."""
    keys = hashes if isinstance(hashes, np.ndarray) else np.frombuffer(array("Q", hashes), np.uint64)
    return np.maximum(keys, np.uint64(1))


def _runs(values: Values) -> Iterable[tuple[int, int]]:
    """Where a run of equal values starts, and the value."""
    starts = np.concatenate([_FIRST, (values[1:] != values[:-1]).nonzero()[0] + 1])
    return zip(starts.tolist(), values[starts].tolist(), strict=True)
