"""Where a request goes: filter, predict, pick.

The first leg goes where first token and hand-off are predicted soonest, apart from decode or on a decode worker,
whichever is better for everybody; decode goes where blocks are, or come quickly, and tokens come steadily. Decides
without I/O on a state that its owner keeps; the time and the source of chance are arguments.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from cluster.config_placement import LatencyStart, PlacementConfig
from cluster.engine import Leg, Role
from cluster.latency_model import LatencyModel
from router.decision import Column, CostTable, Decision, Why
from router.prefix_index import PrefixIndex
from router.session_pins import Pins, SessionPins
from router.worker_loads import Flags, Load, Loads, Rows, WorkerFacts, WorkerLoads

# Predictions are not so exact that less would tell two workers apart. Where both would compute the same, the share is
# of that time: one that seems a little faster would get all that finds no queue, until its cache is too small for it.
_TIE_S, _TIE_SHARE = 1e-4, 0.25
_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """What placement must know of a request. `hashes`: of the prompt's full blocks. `max_tokens`: of output. `session`:
    requests of one conversation; empty without one."""

    hashes: Sequence[int]
    prompt_tokens: int
    max_tokens: int
    session: str = ""


@dataclass(frozen=True, slots=True)
class BlockShape:
    tokens: int
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """The workers that can take one request: their rows and loads, how many of its first blocks they have, and how many
    of its tokens they need not compute; how long they have been busy with the first prompt ahead."""

    rows: Rows
    loads: Loads
    held: Column
    cached_tokens: Column
    busy_s: Column

    def __len__(self) -> int:
        return len(self.rows)


class Placement:
    """`loads`, `index` and `latency` are fed by whoever hears from the workers; rows are the same in all of them.
    Without `pins` it keeps its own. `prefill_may_decode`: as in `WorkerLoads`. `starts`: what is assumed of each pool
    at first, by its name; otherwise what the configuration says of all."""

    def __init__(
        self,
        config: PlacementConfig,
        block: BlockShape,
        pins: Pins | None = None,
        prefill_may_decode: bool = True,
        starts: Mapping[str, LatencyStart] | None = None,
    ) -> None:
        self._config = config
        self.block = block
        self.loads = WorkerLoads(prefill_may_decode)
        self.index = PrefixIndex(config.index_blocks, config.guess_s)
        self.latency = LatencyModel(config.start, config.half_life_s, starts)
        self.pins = pins or SessionPins(config.pins, config.pin_s)
        self._turns = count(1)
        self._last_turn: dict[int, int] = {}  # by row

    # Workers

    def worker_up(self, facts: WorkerFacts) -> None:
        """A worker without load or blocks, as far as is known. A known one begins anew."""
        row = self.loads.add(facts)
        self._last_turn[row] = 0
        self.index.add(facts.worker_id, row, facts.num_blocks)
        self.latency.add(row, facts.role.value)

    def worker_gone(self, worker_id: str) -> None:
        """Unknown ids are no error."""
        if (row := self.loads.row(worker_id)) is not None:
            self.latency.remove(row)
            self.index.worker_gone(worker_id)
            self.loads.remove(worker_id)

    # Decisions: None where no worker can take the request. They change nothing

    def first(
        self, demand: Demand, now: float, draw: random.Random, avoid: frozenset[str] = _NOBODY
    ) -> Decision | None:
        """The worker for `Leg.PREFILL`, or for `Leg.WHOLE` where prefill apart does not pay or cannot be."""
        prefills, decodes = (self.loads.usable(role, avoid, now) for role in (Role.PREFILL, Role.DECODE))
        if not len(prefills) and not len(decodes):
            return None
        held = self._held(demand)
        prefill, decode = self._pool(prefills, demand, held, now), self._pool(decodes, demand, held, now)
        if not prefill or not decode:
            return self._pick(self._whole(demand, prefill or decode), demand, now, draw)
        after = self._decode(demand, decode, None)
        best = int(after.total.argmin())
        apart = self._apart(demand, prefill, int(decode.rows[best]), float(decode.held[best]))
        if self._config.disaggregate == "always":
            return self._pick(apart, demand, now, draw)
        rest = after.costs["decode_s"] + after.costs["room_s"]
        together = self._whole(demand, decode, np.maximum(rest - rest[best], 0.0))
        if self._config.disaggregate == "never":
            return self._pick(together, demand, now, draw)
        taken, other = (apart, together) if apart.total.min() <= together.total.min() else (together, apart)
        return self._pick(taken, demand, now, draw, other)

    def one(
        self, leg: Leg, role: Role, demand: Demand, source: str, now: float, draw: random.Random, avoid: frozenset[str]
    ) -> Decision | None:
        """The worker of this pool for this leg, whatever else would be better. `source`: the worker that has the
        prompt's blocks, which may be gone; empty where none has them yet."""
        rows = self.loads.usable(role, avoid, now)
        if not len(rows):
            return None
        pool = self._pool(rows, demand, self._held(demand), now)
        match leg:
            case Leg.PREFILL:
                table = self._apart(demand, pool, None, 0.0)
            case Leg.WHOLE:
                table = self._whole(demand, pool)
            case Leg.DECODE | Leg.PREFETCH:
                table = self._decode(demand, pool, self.loads.row(source), leg)
        return self._pick(table, demand, now, draw)

    def take(self, attempt_id: str, demand: Demand, decision: Decision, now: float) -> None:
        """Reserves what was decided, expects the prompt's blocks there, and pins the session. `loads.computed` and
        `loads.settle` give the reservation back."""
        chosen, leg = decision.chosen, decision.leg
        output = self.output_tokens(demand) if leg in (Leg.DECODE, Leg.WHOLE) else 0
        uncached = demand.prompt_tokens - chosen.cached_tokens if leg in (Leg.PREFILL, Leg.WHOLE) else 0
        blocks = _blocks(demand.prompt_tokens + output, self.block.tokens)
        sequences = 0 if leg is Leg.PREFETCH else 1
        cached = demand.prompt_tokens - uncached if uncached else 0
        self.loads.reserve(attempt_id, chosen.worker_id, Load(uncached, sequences, blocks, cached), now)
        self.index.expect(chosen.worker_id, demand.hashes)
        self._last_turn[int(decision.table.rows[decision.at])] = next(self._turns)
        if demand.session:
            self.pins.pin(demand.session, _role_of(leg), chosen.worker_id, now)

    # Predictions

    def _apart(self, demand: Demand, pool: _Pool, target: int | None, held: float) -> CostTable:
        """`target`: the decode worker that the prompt is likely to go on to, which has `held` of its blocks; None: it
        is not known."""
        lacking = max(self._prompt_blocks(demand) - held, 0.0) if demand.max_tokens > 1 else 0.0
        size_bytes, compute_s = lacking * self.block.size_bytes, self._compute_s(demand, pool)
        return self._table(
            Leg.PREFILL,
            pool,
            queue_s=self.latency.queue_s(pool.rows, pool.loads.prefill_tokens, pool.busy_s),
            prefill_s=self.latency.asking_s(pool.rows) + compute_s,
            evict_s=self._evict_s(pool, compute_s),
            transfer_s=self.latency.transfer_to(pool.rows, target, size_bytes)
            if target is not None
            else np.zeros(len(pool)),
        )

    def _whole(self, demand: Demand, pool: _Pool, slower_s: Column | None = None) -> CostTable:
        """`slower_s`: how much slower tokens come there than on the best decode worker."""
        compute_s = self._compute_s(demand, pool)
        return self._table(
            Leg.WHOLE,
            pool,
            queue_s=self.latency.queue_s(pool.rows, pool.loads.prefill_tokens, pool.busy_s),
            prefill_s=self.latency.asking_s(pool.rows) + compute_s,
            decode_s=np.zeros(len(pool)) if slower_s is None else slower_s,
            harm_s=self._config.stream_harm * pool.loads.sequences * compute_s,
            evict_s=self._evict_s(pool, compute_s),
        )

    def _decode(self, demand: Demand, pool: _Pool, source: int | None, leg: Leg = Leg.DECODE) -> CostTable:
        """Where blocks are short, some request must wait until others give theirs back: as if those that hold blocks
        now ended evenly over the time that this request takes."""
        lacking, output = np.maximum(self._prompt_blocks(demand) - pool.held, 0.0), self.output_tokens(demand)
        used = pool.loads.blocks
        decode_s = output * self.latency.token_s(pool.rows, pool.loads.sequences, used * self.block.tokens)
        short = np.maximum(lacking + _blocks(output, self.block.tokens) + used - pool.loads.num_blocks, 0.0)
        return self._table(
            leg,
            pool,
            transfer_s=self.latency.transfer_from(source, pool.rows, lacking * self.block.size_bytes),
            decode_s=decode_s,
            room_s=decode_s * short / np.maximum(used, 1.0),
        )

    def _table(self, leg: Leg, pool: _Pool, **costs: Column) -> CostTable:
        return CostTable.of(leg, self.loads.names, pool.rows, pool.cached_tokens, **costs)

    def _compute_s(self, demand: Demand, pool: _Pool) -> Column:
        return self.latency.compute_s(pool.rows, demand.prompt_tokens - pool.cached_tokens, demand.prompt_tokens)

    def _evict_s(self, pool: _Pool, compute_s: Column) -> Column:
        """What others will have to compute again."""
        return self._config.eviction_weight * self.index.fill(pool.rows) * compute_s

    def _held(self, demand: Demand) -> Column:
        """By row, how many of the prompt's first blocks each worker has."""
        counts = self.index.match(demand.hashes)
        held = np.zeros(len(self.loads.names))
        held[: len(counts)] = counts
        return held

    def _pool(self, rows: Rows, demand: Demand, held: Column, now: float) -> _Pool:
        held_there = held.take(rows)
        # An engine takes whole blocks from its cache, and always computes the last token.
        cached = np.minimum(held_there, (demand.prompt_tokens - 1) // self.block.tokens) * self.block.tokens
        loads = self.loads.of(rows)
        return _Pool(rows, loads, held_there, cached, np.maximum(now - loads.busy_since, 0.0))

    def cached_tokens(self, demand: Demand) -> int:
        """The most that any worker has of the prompt."""
        return int(self._held(demand).max(initial=0.0)) * self.block.tokens

    def _prompt_blocks(self, demand: Demand) -> int:
        return _blocks(demand.prompt_tokens, self.block.tokens)

    def output_tokens(self, demand: Demand) -> int:
        """How many the request is expected to generate."""
        return min(demand.max_tokens, self._config.expected_output_tokens)

    # The pick

    def _pick(
        self, table: CostTable, demand: Demand, now: float, draw: random.Random, instead: CostTable | None = None
    ) -> Decision | None:
        if not len(table):
            return None
        at, why = self._choice(table, demand, now, draw)
        return Decision(why, table.candidate(at), table, at, instead)

    def _choice(self, table: CostTable, demand: Demand, now: float, draw: random.Random) -> tuple[int, Why]:
        if len(table) == 1:
            return 0, Why.ONLY
        if self._config.pick == "random":
            return draw.randrange(len(table)), Why.CHANCE
        if self._config.pick == "round-robin":
            return min(range(len(table)), key=lambda at: self._last_turn[int(table.rows[at])]), Why.TURN
        total = table.total
        best = float(total.min())
        pinned = self._pinned(table, demand, now)
        if pinned is not None and total[pinned] - best <= self._margin_s(best):
            return pinned, Why.BEST if total[pinned] == best else Why.SESSION
        ties = np.flatnonzero(self._as_good(table, int(total.argmin()))).tolist()
        if len(ties) == 1:
            return ties[0], Why.BEST
        # Of two drawn, the one with the emptier cache: nobody's blocks should give way while there is room elsewhere.
        return min(draw.sample(ties, 2), key=lambda at: self.index.held_by(table.names[table.rows[at]])), Why.TIE

    def _as_good(self, table: CostTable, best: int) -> Flags:
        near: Flags = table.total <= table.total[best] + _TIE_S
        if (prefill_s := table.costs.get("prefill_s")) is None:
            return near
        queue_s = table.costs["queue_s"]
        alike = (table.cached_tokens == table.cached_tokens[best]) & (queue_s <= queue_s[best])
        near |= alike & (table.total <= table.total[best] + _TIE_SHARE * prefill_s[best])
        return near

    def _pinned(self, table: CostTable, demand: Demand, now: float) -> int | None:
        if not demand.session:
            return None
        worker_id = self.pins.get(demand.session, _role_of(table.leg), now)
        row = None if worker_id is None else self.loads.row(worker_id)
        if row is None:
            return None
        found: list[int] = np.flatnonzero(table.rows == row).tolist()
        return found[0] if found else None

    def _margin_s(self, best: float) -> float:
        return min(self._config.affinity_share * best, self._config.affinity_most_s)


def _role_of(leg: Leg) -> Role:
    """The pool whose pin a leg follows: a whole request stays where the conversation's tokens come from."""
    return Role.PREFILL if leg is Leg.PREFILL else Role.DECODE


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
