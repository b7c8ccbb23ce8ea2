"""What a prefill, a token of output and a transfer will take on each worker, learnt from what they took.

A worker of which little is known, or nothing new, is taken for one like the others of its pool: or one bad measurement
would keep requests from it for ever, and with them the next. A pool starts from the configuration. Predictions are made
for many workers at once. Pure: the time is an argument. It must not know requests or placement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.config_placement import LatencyStart
from cluster.online_fit import OnlineFit

Rows = npt.NDArray[np.intp]
Amounts = npt.NDArray[np.float64]
Seconds = npt.NDArray[np.float64]

_TOKENS, _PAIRS, _MIB = 1e3, 1e6, float(1 << 20)
_PAIR_STEP = 0.2
_PAIR_LIMIT = 10.0
_DOUBT = 3.0  # a start value may well be off by three times itself
_LEAST = 0.1  # of the default: a value below it is doubted like that much, or what is said to be free stays so
_ENOUGH = 20.0  # measurements of a worker; with fewer, what is known of its pool counts for the rest
_REFRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Prefill:
    """One prompt's prefill: `ahead` tokens of others to be computed first, with which the worker had been busy for
    `busy_s`, then `uncached` of its own `prompt` tokens."""

    ahead: float
    busy_s: float
    uncached: float
    prompt: float


class LatencyModel:
    """`row` is a worker's place in arrays with one element for each worker; a row is used again once it is removed.
    `starts`: of pools by name; of any other, and of transfers, `start`."""

    def __init__(
        self, start: LatencyStart, half_life_s: float, starts: Mapping[str, LatencyStart] | None = None
    ) -> None:
        self._start = start
        self._starts = starts or {}
        self._half_life_s = half_life_s
        self._pools: dict[str, _Fits] = {}
        self._workers: dict[int, _Fits] = {}
        self._pool_of: dict[int, str] = {}
        self._refreshed = -math.inf
        # What was learnt, by row: seconds once, for each token, for each pair of tokens; once, for each sequence, for
        # each token in the KV cache.
        self._prefill: Seconds = np.zeros((3, 0))
        self._step: Seconds = np.zeros((3, 0))
        # How much slower than usual it is from one worker (first index) to another.
        self._pair = np.ones((0, 0), np.float32)
        self._transfer = _fit(_transfer_start(start), _transfer_start(_DEFAULT), half_life_s)

    def add(self, row: int, pool: str) -> None:
        """A worker about which nothing is known but its pool."""
        self._grow(row + 1)
        self._pair[row, :] = self._pair[:, row] = 1.0
        start = self._starts.get(pool, self._start)
        fits = self._pools.setdefault(pool, _first_fits(start, self._half_life_s))
        self._workers[row] = fits.like()
        self._pool_of[row] = pool
        self._publish(row, 0.0)

    def remove(self, row: int) -> None:
        """Unknown rows are no error."""
        self._workers.pop(row, None)
        self._pool_of.pop(row, None)

    def on_time(self, now: float) -> None:
        """What was measured long ago counts less by and by. May be called often."""
        if now < self._refreshed + _REFRESH_S:
            return
        self._refreshed = now
        for row in self._workers:
            self._publish(row, now)

    # Predictions

    def queue_s(self, rows: Rows, ahead: Amounts, busy_s: Amounts) -> Seconds:
        """Until so many prompt tokens of others are computed, with which the worker has been busy for `busy_s`."""
        once, each, _ = self._prefill.take(rows, axis=1)
        # What waits with a prompt is computed with it, so only the computing under way costs its own once.
        seconds: Seconds = np.maximum((ahead > 0) * once + ahead * each - busy_s, 0.0)
        return seconds

    def asking_s(self, rows: Rows) -> Seconds:
        """What a prefill takes however short it is, on top of the queue and the computing."""
        seconds: Seconds = self._prefill[0].take(rows)
        return seconds

    def compute_s(self, rows: Rows, uncached: Amounts, prompt: Amounts | float) -> Seconds:
        """What of a prefill keeps the worker busy: `uncached` tokens at the end of a prompt."""
        _, each, pair = self._prefill.take(rows, axis=1)
        seconds: Seconds = uncached * (each + (prompt - 0.5 * uncached) * pair)
        return seconds

    def token_s(self, rows: Rows, running: Amounts, kv_tokens: Amounts) -> Seconds:
        """Between two tokens of one sequence, beside `running` sequences with so many tokens in their KV cache."""
        once, each, kv = self._step.take(rows, axis=1)
        seconds: Seconds = once + running * each + kv_tokens * kv
        return seconds

    def transfer_to(self, sources: Rows, target: int, size_bytes: float) -> Seconds:
        """Of so many bytes from each of these workers to one; nothing takes no time."""
        seconds: Seconds = self._usual_transfer_s(np.array([size_bytes])) * self._pair[:, target].take(sources)
        return seconds

    def transfer_from(self, source: int | None, targets: Rows, size_bytes: Amounts) -> Seconds:
        """Of so many bytes each, from one worker, or from any where that is None."""
        usual = self._usual_transfer_s(size_bytes)
        seconds: Seconds = usual if source is None else usual * self._pair[source].take(targets)
        return seconds

    # What a worker's pool usually takes for the same; None for a worker that is gone

    def usual_prefill_s(self, row: int, prefill: Prefill) -> float | None:
        """From its submission to its first token."""
        pool = self._pools.get(self._pool_of.get(row, ""))
        return None if pool is None else max(pool.prefill.predict(_prefill_features(prefill)) - prefill.busy_s, 0.0)

    def usual_token_s(self, row: int, running: float, kv_tokens: float) -> float | None:
        """Between two tokens of a sequence, beside `running` others."""
        pool = self._pools.get(self._pool_of.get(row, ""))
        return None if pool is None else pool.step.predict((1.0, running, kv_tokens / _TOKENS))

    # Measurements: those of workers that are gone are left out

    def observe_prefill(self, row: int, prefill: Prefill, seconds: float, now: float) -> None:
        """From its submission to its first token. What is learnt from is the time since the worker began with the
        first prompt ahead: how far it had come with that is not known."""
        features = _prefill_features(prefill)
        if row in self._workers:
            for fits in (self._workers[row], self._pools[self._pool_of[row]]):
                fits.prefill.observe(features, prefill.busy_s + seconds, now)
            self._publish(row, now)

    def observe_token(self, row: int, running: float, kv_tokens: float, seconds: float, now: float) -> None:
        """The mean time between two tokens of a sequence, beside `running` others."""
        features = (1.0, running, kv_tokens / _TOKENS)
        if row in self._workers:
            for fits in (self._workers[row], self._pools[self._pool_of[row]]):
                fits.step.observe(features, seconds, now)
            self._publish(row, now)

    def observe_transfer(self, source: int, target: int, size_bytes: float, seconds: float, now: float) -> None:
        features = (1.0, size_bytes / _MIB)
        if source not in self._workers or target not in self._workers or not (size_bytes > 0 and seconds > 0):
            return
        self._transfer.observe(features, seconds, now)
        usual = max(self._transfer.predict(features), 1e-9)
        factor = float(self._pair[source, target])
        step = min(max(math.log(max(seconds, 1e-9) / (usual * factor)), -1.0), 1.0)
        self._pair[source, target] = min(max(factor * math.exp(_PAIR_STEP * step), 1 / _PAIR_LIMIT), _PAIR_LIMIT)

    # Inside

    def _publish(self, row: int, now: float) -> None:
        own, pool = self._workers[row], self._pools[self._pool_of[row]]
        self._prefill[:, row] = np.divide(_known(own.prefill, pool.prefill, now), (1.0, _TOKENS, _PAIRS))
        self._step[:, row] = np.divide(_known(own.step, pool.step, now), (1.0, 1.0, _TOKENS))

    def _usual_transfer_s(self, size_bytes: Amounts) -> Seconds:
        once, each_mib = self._transfer.coefficients
        seconds: Seconds = (size_bytes > 0) * once + size_bytes * (each_mib / _MIB)
        return seconds

    def _grow(self, rows: int) -> None:
        have = len(self._pair)
        if rows <= have:
            return
        more = max(rows, 2 * have) - have
        self._prefill = np.hstack([self._prefill, np.zeros((3, more))])
        self._step = np.hstack([self._step, np.zeros((3, more))])
        self._pair = np.pad(self._pair, (0, more), constant_values=1.0)


@dataclass(frozen=True, slots=True)
class _Fits:
    """`prefill`: once, each 1,000 tokens ahead and its own, each million pairs of tokens that attend to each other.
    `step`: once, each sequence running, each 1,000 tokens in the KV cache."""

    prefill: OnlineFit
    step: OnlineFit
    half_life_s: float

    def like(self) -> _Fits:
        """New fits that start from what these have learnt."""
        return _fits(self.prefill.coefficients, self.step.coefficients, self.half_life_s)


def _prefill_features(prefill: Prefill) -> tuple[float, float, float]:
    tokens = (prefill.ahead + prefill.uncached) / _TOKENS
    pairs = prefill.uncached * (prefill.prompt - prefill.uncached / 2) / _PAIRS
    return 2.0 if prefill.ahead else 1.0, tokens, pairs


def _known(own: OnlineFit, pool: OnlineFit, now: float) -> list[float]:
    share = min(own.evidence(now) / _ENOUGH, 1.0)
    return [
        share * of_it + (1.0 - share) * usual for of_it, usual in zip(own.coefficients, pool.coefficients, strict=True)
    ]


def _first_fits(start: LatencyStart, half_life_s: float) -> _Fits:
    return _fits(_prefill_start(start), _step_start(start), half_life_s)


def _fits(prefill: Sequence[float], step: Sequence[float], half_life_s: float) -> _Fits:
    return _Fits(
        _fit(prefill, _prefill_start(_DEFAULT), half_life_s),
        _fit(step, _step_start(_DEFAULT), half_life_s),
        half_life_s,
    )


def _fit(start: Sequence[float], default: Sequence[float], half_life_s: float) -> OnlineFit:
    """A part that starts at nothing, also by default, is held to be small beside the others."""
    known = [max(value, _LEAST * usual) for value, usual in zip(start, default, strict=True)]
    return OnlineFit(start, [max(_DOUBT * value, 0.01 * max(known)) for value in known], half_life_s)


# Coefficients before anything is measured

_DEFAULT = LatencyStart()


def _prefill_start(start: LatencyStart) -> list[float]:
    return [start.prefill_s, start.prefill_token_s * _TOKENS, 0.0]


def _step_start(start: LatencyStart) -> list[float]:
    return [start.step_s, start.step_sequence_s, 0.0]


def _transfer_start(start: LatencyStart) -> list[float]:
    return [start.transfer_s, 1.0 / start.transfer_mib_per_s]
