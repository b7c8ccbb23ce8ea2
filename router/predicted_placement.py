"""Where a request goes: filter, predict, pick.

The first leg goes where first token and hand-off are predicted soonest, apart from decode or on a decode worker,
whichever is better for everybody; decode goes where blocks are, or come quickly, and tokens come steadily. Decides
without I/O on a state that its owner keeps; the time and the source of chance are arguments.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.config_placement import PlacementConfig
from cluster.engine import Leg, Role
from cluster.latency_model import LatencyModel
from router.decision import Column, CostTable, Decision, Why
from router.prefix_index import PrefixIndex
from router.session_pins import SessionPins
from router.worker_loads import Load, Rows, WorkerFacts, WorkerLoads

_TIE_S = 1e-4  # predictions are not so exact that less would tell two workers apart
_RECORDED = 8
_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """What placement must know of a request. `hashes`: of the prompt's full blocks. `max_tokens`: of output. `needs`:
    what its workers must be able to do. `session`: requests of one conversation; empty without one."""

    hashes: Sequence[int]
    prompt_tokens: int
    max_tokens: int
    needs: frozenset[str] = _NOBODY
    session: str = ""


@dataclass(frozen=True, slots=True)
class BlockShape:
    tokens: int
    size_bytes: int


class Placement:
    """`loads`, `index` and `latency` are fed by whoever hears from the workers; rows are the same in all of them."""

    def __init__(self, config: PlacementConfig, block: BlockShape) -> None:
        self._config = config
        self._block = block
        self.loads = WorkerLoads()
        self.index = PrefixIndex(config.index_blocks, config.guess_s)
        self.latency = LatencyModel(config.start, config.half_life_s)
        self.pins = SessionPins(config.pins, config.pin_s)

    # Workers

    def worker_up(self, facts: WorkerFacts) -> None:
        """A worker without load or blocks, as far as is known. A known one begins anew."""
        row = self.loads.add(facts)
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
        prefill = self.loads.usable(Role.PREFILL, demand.needs, avoid, now)
        decode = self.loads.usable(Role.DECODE, demand.needs, avoid, now)
        held = self._held(demand)
        if not len(prefill) or not len(decode):
            return self._pick(self._whole(demand, held, prefill if len(prefill) else decode), demand, now, draw)
        after = self._decode(demand, held, decode, None)
        best = int(after.total.argmin())
        apart = self._apart(demand, held, prefill, int(decode[best]))
        if self._config.disaggregate == "always":
            return self._pick(apart, demand, now, draw)
        rest = np.asarray(after.decode_s) + np.asarray(after.room_s)
        together = self._whole(demand, held, decode, rest - rest[best])
        if self._config.disaggregate == "never":
            return self._pick(together, demand, now, draw)
        taken, other = (apart, together) if apart.total.min() <= together.total.min() else (together, apart)
        return self._pick(taken, demand, now, draw, other)

    def second(
        self, demand: Demand, source: str, now: float, draw: random.Random, avoid: frozenset[str] = _NOBODY
    ) -> Decision | None:
        """The worker for `Leg.DECODE` of a prompt whose blocks are at the worker `source`, which may be gone."""
        rows = self.loads.usable(Role.DECODE, demand.needs, avoid, now)
        return self._pick(self._decode(demand, self._held(demand), rows, self.loads.row(source)), demand, now, draw)

    def take(self, attempt_id: str, demand: Demand, decision: Decision, now: float) -> None:
        """Reserves what was decided, expects the prompt's blocks there, and pins the session. `loads.computed` and
        `loads.settle` give the reservation back."""
        chosen, leg = decision.chosen, decision.leg
        output = 0 if leg is Leg.PREFILL else self._output_tokens(demand)
        uncached = 0 if leg is Leg.DECODE else demand.prompt_tokens - chosen.cached_tokens
        blocks = _blocks(demand.prompt_tokens + output, self._block.tokens)
        self.loads.reserve(attempt_id, chosen.worker_id, Load(uncached, 1, blocks))
        self.index.expect(chosen.worker_id, demand.hashes)
        if demand.session:
            self.pins.pin(demand.session, _role_of(leg), chosen.worker_id, now)

    # Predictions

    def _apart(self, demand: Demand, held: Column, rows: Rows, target: int) -> CostTable:
        cached = self._cached_tokens(demand, held, rows)
        size_bytes = self._lacking(demand, held[target]) * self._block.size_bytes
        return CostTable(
            Leg.PREFILL,
            rows,
            cached,
            queue_s=self.latency.queue_s(rows, self.loads.prefill_tokens(rows)),
            prefill_s=self.latency.prefill_s(rows, demand.prompt_tokens - cached, demand.prompt_tokens),
            transfer_s=self.latency.transfer_s(rows, target, size_bytes),
        )

    def _whole(self, demand: Demand, held: Column, rows: Rows, slower_s: Column | float = 0.0) -> CostTable:
        """`slower_s`: how much slower tokens come there than on the best decode worker."""
        cached = self._cached_tokens(demand, held, rows)
        uncached = demand.prompt_tokens - cached
        return CostTable(
            Leg.WHOLE,
            rows,
            cached,
            queue_s=self.latency.queue_s(rows, self.loads.prefill_tokens(rows)),
            prefill_s=self.latency.prefill_s(rows, uncached, demand.prompt_tokens),
            decode_s=np.maximum(slower_s, 0.0),
            harm_s=self._config.stream_harm
            * self.loads.sequences(rows)
            * self.latency.compute_s(rows, uncached, demand.prompt_tokens),
        )

    def _decode(self, demand: Demand, held: Column, rows: Rows, source: int | None) -> CostTable:
        """Where blocks are short, some request must wait until others give theirs back: as if those that hold blocks
        now ended evenly over the time that this request takes."""
        lacking, output = self._lacking(demand, held[rows]), self._output_tokens(demand)
        used = self.loads.blocks(rows)
        token_s = self.latency.token_s(rows, self.loads.sequences(rows), used * self._block.tokens)
        needed = lacking + _blocks(output, self._block.tokens)
        short = np.maximum(needed - (self.loads.num_blocks(rows) - used), 0.0)
        # A worker's way to itself stands for the usual way where the source is not known.
        way = rows if source is None else np.full(len(rows), source)
        return CostTable(
            Leg.DECODE,
            rows,
            self._cached_tokens(demand, held, rows),
            transfer_s=self.latency.transfer_s(way, rows, lacking * self._block.size_bytes),
            decode_s=output * token_s,
            room_s=output * token_s * short / np.maximum(used, 1.0),
        )

    def _held(self, demand: Demand) -> Column:
        """By row, how many of the prompt's first blocks each worker has."""
        counts = self.index.match(demand.hashes)
        held = np.zeros(len(self.loads.names))
        held[: len(counts)] = counts
        return held

    def _cached_tokens(self, demand: Demand, held: Column, rows: Rows) -> Column:
        """An engine always computes the last token, and whole blocks only."""
        most = (demand.prompt_tokens - 1) // self._block.tokens
        cached: Column = np.minimum(held[rows], most) * self._block.tokens
        return cached

    def _lacking(self, demand: Demand, held: Column) -> Column:
        lacking: Column = np.maximum(_blocks(demand.prompt_tokens, self._block.tokens) - held, 0.0)
        return lacking

    def _output_tokens(self, demand: Demand) -> int:
        return min(demand.max_tokens, self._config.expected_output_tokens)

    # The pick

    def _pick(
        self, table: CostTable, demand: Demand, now: float, draw: random.Random, other: CostTable | None = None
    ) -> Decision | None:
        count = len(table.rows)
        if not count:
            return None
        total = table.total
        at, why = self._choice(table, total, demand, now, draw)
        best_first = _smallest(total, _RECORDED)
        if at not in best_first:
            best_first = [*best_first[:-1], at]
        names = self.loads.names
        candidates = {i: table.candidate(i, names) for i in best_first}
        instead = None if other is None else other.candidate(int(other.total.argmin()), names)
        return Decision(table.leg, why, candidates[at], tuple(candidates.values()), count, instead)

    def _choice(
        self, table: CostTable, total: Column, demand: Demand, now: float, draw: random.Random
    ) -> tuple[int, Why]:
        if len(total) == 1:
            return 0, Why.ONLY
        best = float(total.min())
        pinned = self._pinned(table, demand, now)
        if pinned is not None and total[pinned] - best <= self._margin_s(best):
            return pinned, Why.BEST if total[pinned] == best else Why.SESSION
        ties = np.flatnonzero(total <= best + _TIE_S).tolist()
        return (ties[0], Why.BEST) if len(ties) == 1 else (draw.choice(ties), Why.TIE)

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


def _smallest(total: Column, count: int) -> list[int]:
    """Positions of the smallest, smallest first."""
    near: npt.NDArray[np.intp] = np.argpartition(total, count)[:count] if len(total) > count else np.arange(len(total))
    order: list[int] = near[np.argsort(total[near], kind="stable")].tolist()
    return order
