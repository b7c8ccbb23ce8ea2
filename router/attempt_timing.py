"""What attempts really took, told to the latency model that predicted it, and to who looks for slow workers.

Follows each attempt from its submission: prefill until its first token, a hand-over until decode's first output, then
the time between tokens. It must not know requests, nor what is done with the predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.engine import Leg, PromptOrigin
from cluster.latency_model import Prefill
from router.predicted_placement import Placement
from router.slow_workers import SlowWorkers, Work

_TOKENS_AT_ONCE = 32  # between two tokens of a long output much may change, so it is measured in parts
_LEAST_TOKENS = 4  # fewer say little


@dataclass(slots=True)
class _Timed:
    """`row`, `source`: of the worker, and of the one that its blocks come from. `since`: its submission, then the first
    token of the part that is being measured, of which `tokens` have come since."""

    leg: Leg
    worker_id: str
    row: int
    source: str
    ahead: float
    busy_s: float
    uncached: float
    prompt: int
    since: float
    answered: bool = False
    tokens: int = 0


class AttemptTiming:
    """Times are seconds of one monotonic clock. Attempts that are not known, or whose worker is not, are left out."""

    def __init__(self, placement: Placement, slow: SlowWorkers | None = None) -> None:
        self._placement = placement
        self._slow = slow
        self._timed: dict[str, _Timed] = {}

    def __len__(self) -> int:
        return len(self._timed)

    def submitted(
        self, attempt_id: str, leg: Leg, worker_id: str, source: str, prompt: int, cached: int, now: float
    ) -> None:
        """To be called before its load is reserved. `cached`: prompt tokens expected in the worker's cache."""
        row = self._placement.loads.row(worker_id)
        if row is not None and leg is not Leg.PREFETCH:
            load = self._placement.loads.of(np.array([row]))
            ahead, busy_s = float(load.prefill_tokens[0]), max(now - float(load.busy_since[0]), 0.0)
            self._timed[attempt_id] = _Timed(leg, worker_id, row, source, ahead, busy_s, prompt - cached, prompt, now)

    def output(self, attempt_id: str, tokens: int, origin: PromptOrigin | None, now: float) -> None:
        timed = self._timed.get(attempt_id)
        if timed is None:
            return
        if timed.answered:
            timed.tokens += tokens
            if timed.tokens >= _TOKENS_AT_ONCE:
                self._part_ended(timed, now)
            return
        timed.answered = True
        if timed.leg is Leg.DECODE:
            self._pulled(timed, origin, now)
        else:
            self._prefilled(timed, origin, now)
        timed.since = now

    def settled(self, attempt_id: str, now: float) -> None:
        timed = self._timed.pop(attempt_id, None)
        if timed is not None and timed.tokens >= _LEAST_TOKENS:
            self._part_ended(timed, now)

    # Inside

    def _prefilled(self, timed: _Timed, origin: PromptOrigin | None, now: float) -> None:
        uncached = timed.uncached
        if origin is not None:
            uncached = max(origin.prompt_tokens - origin.cached_tokens - origin.pulled_tokens, 1)
        prefill = Prefill(timed.ahead, timed.busy_s, uncached, timed.prompt)
        usual_s = self._placement.latency.usual_prefill_s(timed.row, prefill)
        self._compare(timed, Work.PREFILL, now - timed.since, usual_s, now)
        self._placement.latency.observe_prefill(timed.row, prefill, now - timed.since, now)

    def _pulled(self, timed: _Timed, origin: PromptOrigin | None, now: float) -> None:
        source = self._placement.loads.row(timed.source)
        if origin is None or source is None:
            return
        block = self._placement.block
        size_bytes = -(-origin.pulled_tokens // block.tokens) * block.size_bytes
        self._placement.latency.observe_transfer(source, timed.row, size_bytes, now - timed.since, now)

    def _part_ended(self, timed: _Timed, now: float) -> None:
        load = self._placement.loads.of(np.array([timed.row]))
        others = max(float(load.sequences[0]) - 1.0, 0.0)
        kv_tokens = float(load.blocks[0]) * self._placement.block.tokens
        seconds = (now - timed.since) / timed.tokens
        usual_s = self._placement.latency.usual_token_s(timed.row, others, kv_tokens)
        self._compare(timed, Work.TOKEN, seconds, usual_s, now)
        self._placement.latency.observe_token(timed.row, others, kv_tokens, seconds, now)
        timed.since, timed.tokens = now, 0

    def _compare(self, timed: _Timed, work: Work, seconds: float, usual_s: float | None, now: float) -> None:
        if self._slow is not None and usual_s is not None:
            self._slow.took(timed.worker_id, work, seconds, usual_s, now)
