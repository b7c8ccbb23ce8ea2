"""What pools of so many workers deliver when prefill and decode are apart: how late tokens come, how full workers are.

Each pool is judged at one number of replicas; which number is needed is the search's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.cost_model import CostModel
from deploy.planning.engine_times import PromptTimes
from deploy.planning.queueing import Occupancy, Waiting, occupancy, waiting
from deploy.planning.workload import Workload


@dataclass(frozen=True, slots=True)
class PrefillPool:
    """Prompts wait in one line for the next free worker: a router that predicts comes near to that. Where a prompt has
    to wait, others fill its last step. `busy`: share of time that a worker computes."""

    engine: CostModel
    replicas: int
    times: PromptTimes
    line: Waiting
    busy: float

    def ttft_later_than(self, seconds: float, extra_s: Sequence[float]) -> float:
        """The share of first tokens that come later than `seconds`; `extra_s` is added for each prompt length."""
        return first_tokens_later_than(seconds, self.line, self.times, extra_s)


def prefill_pool(engine: CostModel, replicas: int, times: PromptTimes, workload: Workload) -> PrefillPool | None:
    """None: prompts come faster than they are computed."""
    line = waiting(replicas, workload.rate, times.share_s)
    if line is None:
        return None
    return PrefillPool(engine, replicas, times, line, workload.rate * times.mean_share_s / replicas)


@dataclass(frozen=True, slots=True)
class DecodePool:
    """Each worker gets its part of the sequences at random. `steps_s[n]`: seconds of a step of n of them.
    `token_shares[n]`: of all tokens, those that come while n sequences run."""

    engine: CostModel
    replicas: int
    steps_s: tuple[float, ...]
    running: Occupancy
    token_shares: tuple[float, ...]

    @property
    def places(self) -> int:
        return len(self.steps_s) - 1

    @property
    def mean_gap_s(self) -> float:
        return sum(share * step for share, step in zip(self.token_shares, self.steps_s, strict=True))

    def gap_longer_than(self, seconds: float) -> float:
        """The share of gaps between two tokens of a sequence that are longer."""
        return sum(share for share, step in zip(self.token_shares, self.steps_s, strict=True) if step > seconds)


def decode_pool(engine: CostModel, replicas: int, steps_s: tuple[float, ...], workload: Workload) -> DecodePool | None:
    """None: sequences come faster than they end."""
    running = occupancy(workload.rate / replicas, workload.later_tokens, steps_s[1:])
    if running is None:
        return None
    return DecodePool(engine, replicas, steps_s, running, token_shares(running, steps_s))


def token_shares(running: Occupancy, gaps_s: Sequence[float]) -> tuple[float, ...]:
    """For each number of sequences the share of tokens that come while so many run, where each then gets one every
    `gaps_s[n]` seconds."""
    weights = [chance * count / gap for count, (chance, gap) in enumerate(zip(running.chances, gaps_s, strict=True))]
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total else tuple(weights)


def first_tokens_later_than(seconds: float, line: Waiting, times: PromptTimes, extra_s: Sequence[float]) -> float:
    """The share of first tokens later than `seconds`, of prompts that wait in `line` and then take `times`."""
    late = 0.0
    for alone, crowded, extra in zip(times.alone_s, times.crowded_s, extra_s, strict=True):
        late += line.chance * line.longer_than(seconds - crowded - extra)
        late += 1.0 - line.chance if alone + extra > seconds else 0.0
    return late / len(times.alone_s)
