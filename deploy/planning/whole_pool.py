"""What a pool delivers whose engines compute prompts and generate at once, so that each disturbs the other.

Prompts are cut into chunks that run beside the sequences (Agrawal et al., "Sarathi-Serve", arXiv:2403.02310, section
4): a step with a chunk is longer, and every sequence in it waits for it. How many sequences run follows from the mean
of both kinds of steps; how long a gap is, from either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cluster.cost_model import CostModel
from deploy.planning.apart import worker_price
from deploy.planning.demand import Demand
from deploy.planning.engine_times import PromptTimes
from deploy.planning.pools import first_tokens_later_than, token_shares
from deploy.planning.queueing import Occupancy, Waiting, occupancy, waiting
from deploy.planning.workload import Workload


@dataclass(frozen=True, slots=True)
class WholeEngine:
    """`steps_s[n]`, `mixed_s[n]`: seconds of a step of n sequences, without prompt tokens and with a full chunk."""

    engine: CostModel
    steps_s: tuple[float, ...]
    mixed_s: tuple[float, ...]
    times: PromptTimes

    @property
    def places(self) -> int:
        return len(self.steps_s) - 1


@dataclass(frozen=True, slots=True)
class WholePool:
    """`mixed_shares[n]`: of the steps of n sequences, those with prompt tokens in them. `busy`: share of time that a
    worker takes for such steps."""

    whole: WholeEngine
    replicas: int
    times: PromptTimes
    line: Waiting
    running: Occupancy
    token_shares: tuple[float, ...]
    mixed_shares: tuple[float, ...]
    busy: float

    def ttft_later_than(self, seconds: float, extra_s: Sequence[float]) -> float:
        return first_tokens_later_than(seconds, self.line, self.times, extra_s)

    def gap_longer_than(self, seconds: float) -> float:
        late = 0.0
        for count, (share, mixed) in enumerate(zip(self.token_shares, self.mixed_shares, strict=True)):
            late += share * mixed if self.whole.mixed_s[count] > seconds else 0.0
            late += share * (1.0 - mixed) if self.whole.steps_s[count] > seconds else 0.0
        return late

    @property
    def mean_gap_s(self) -> float:
        shares = zip(self.token_shares, self.mixed_shares, self.whole.steps_s, self.whole.mixed_s, strict=True)
        return sum(share * (mixed * long + (1.0 - mixed) * step) for share, mixed, step, long in shares)


@dataclass(frozen=True, slots=True)
class Whole:
    """A pool that is all there is: what a client sees of it."""

    demand: Demand
    pool: WholePool

    @property
    def gpus(self) -> int:
        return self.pool.replicas * self.pool.whole.engine.tensor_parallel

    @property
    def price(self) -> float:
        """US dollars an hour."""
        return self.pool.replicas * worker_price(self.pool.whole.engine)

    def ttft_later_than(self, seconds: float) -> float:
        return self.pool.ttft_later_than(seconds, [self.demand.edge_s] * len(self.pool.times.alone_s))

    def gap_longer_than(self, seconds: float) -> float:
        return self.pool.gap_longer_than(seconds)

    def keeps_goals(self) -> bool:
        goals, late = self.demand.goals, 1.0 - self.demand.goals.share
        return (
            self.pool.busy <= self.demand.most_busy
            and self.pool.running.wait_chance <= self.demand.most_full
            and self.gap_longer_than(goals.itl_s) <= late
            and self.ttft_later_than(goals.ttft_s) <= late
        )


def whole_pool(whole: WholeEngine, replicas: int, workload: Workload) -> WholePool | None:
    """None: more comes than the pool can do."""
    arrivals = workload.rate / replicas
    filled, chunks = arrivals * fmean(whole.times.filled), arrivals * fmean(whole.times.chunks)
    gaps_s = [_mean_step_s(filled, step, mixed) for step, mixed in zip(whole.steps_s, whole.mixed_s, strict=True)]
    running = occupancy(arrivals, workload.later_tokens, gaps_s[1:])
    if running is None:
        return None
    usual = math.ceil(running.mean)
    times = whole.times.slower(whole.mixed_s[usual] - whole.mixed_s[0], whole.steps_s[usual])
    line = waiting(replicas, workload.rate, times.share_s)
    if line is None:
        return None
    mixed_shares = [
        _mixed_share(filled, chunks, step, mixed) for step, mixed in zip(whole.steps_s, whole.mixed_s, strict=True)
    ]
    return WholePool(
        whole=whole,
        replicas=replicas,
        times=times,
        line=line,
        running=running,
        token_shares=token_shares(running, gaps_s),
        mixed_shares=tuple(mixed_shares),
        busy=arrivals * times.mean_share_s,
    )


def _mean_step_s(filled: float, step_s: float, mixed_s: float) -> float:
    """Of all steps, where `filled` chunks come each second and the time that they leave has steps without any."""
    left = 1.0 - filled * mixed_s
    return 1.0 / (filled + left / step_s) if left > 0 else mixed_s


def _mixed_share(filled: float, chunks: float, step_s: float, mixed_s: float) -> float:
    """Chunks count as full ones, and no two prompts share a step while there is room for more steps: both err on the
    side of stalls."""
    mixed = min(chunks, 1.0 / mixed_s)
    plain = max(1.0 - filled * mixed_s, 0.0) / step_s
    return mixed / (mixed + plain)
