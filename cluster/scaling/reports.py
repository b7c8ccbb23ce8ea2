"""What routers report of demand and workers, and what that amounts to: the fleet as the autoscaler sees it.

Pure. Every router sees all workers, so of a worker the fullest account counts; of requests each router tells its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.engine import Role


@dataclass(frozen=True, slots=True)
class WorkerSight:
    """One worker as a router knows it. `queued_tokens`: prompt tokens to be computed there; `tokens_per_s`: how fast,
    as measured. `kv_usage`: share of its blocks that are in use. A token beside n sequences takes `step_s` + n x
    `sequence_s`. NaN where it is not known."""

    worker_id: str
    role: Role
    ready: bool
    queued_tokens: float
    tokens_per_s: float
    sequences: float
    kv_usage: float
    step_s: float
    sequence_s: float


@dataclass(frozen=True, slots=True)
class RouterReport:
    """`waiting`: requests that no worker has. `arrived`: since the router's start. Of the prompt tokens of both count
    those that are to be computed, as far as could be told."""

    router_id: str
    waiting_requests: int = 0
    waiting_tokens: float = 0.0
    in_flight: int = 0
    arrived_requests: int = 0
    arrived_tokens: float = 0.0
    workers: tuple[WorkerSight, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """A report and its age in seconds."""

    report: RouterReport
    age_s: float


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Counters of one router at its report before."""

    requests: int
    tokens: float


@dataclass(frozen=True, slots=True)
class PoolSight:
    """One pool: sums over its workers but for `tokens_per_s`, `step_s` and `sequence_s`, which are of one worker.
    `kv_used` is in workers' worth of blocks. NaN where a worker does not say what it should. A time may be 0,
    `tokens_per_s` may not."""

    workers: int = 0
    ready: int = 0
    queued_tokens: float = 0.0
    sequences: float = 0.0
    kv_used: float = 0.0
    tokens_per_s: float = math.nan
    step_s: float = math.nan
    sequence_s: float = math.nan


@dataclass(frozen=True, slots=True)
class Sight:
    """`arrived_*`: since the sight before. `silent`: routers that have not reported for too long; without any that has
    (`blind`) nothing is known."""

    pools: Mapping[Role, PoolSight] = field(default_factory=lambda: {role: PoolSight() for role in Role})
    waiting_requests: int = 0
    waiting_tokens: float = 0.0
    in_flight: int = 0
    arrived_requests: int = 0
    arrived_tokens: float = 0.0
    silent: tuple[str, ...] = ()
    blind: bool = False


def see(heard: Sequence[Heard], before: Mapping[str, Arrivals], stale_s: float) -> tuple[Sight, dict[str, Arrivals]]:
    """The fleet now, and the counters to compare with next time. A router's first report only begins its count, and so
    does the first one after a silence: what came meanwhile did not come within one period."""
    fresh = [each.report for each in heard if each.age_s <= stale_s]
    silent = tuple(each.report.router_id for each in heard if each.age_s > stale_s)
    arrived = {report.router_id: _arrivals(report) for report in fresh}
    come = [_since(before.get(report.router_id), arrived[report.router_id]) for report in fresh]
    sight = Sight(
        pools={role: _pool(role, fresh) for role in Role},
        waiting_requests=sum(report.waiting_requests for report in fresh),
        waiting_tokens=sum(report.waiting_tokens for report in fresh),
        in_flight=sum(report.in_flight for report in fresh),
        arrived_requests=sum(each.requests for each in come),
        arrived_tokens=sum(each.tokens for each in come),
        silent=silent,
        blind=not fresh,
    )
    return sight, arrived


def _arrivals(report: RouterReport) -> Arrivals:
    return Arrivals(report.arrived_requests, report.arrived_tokens)


def _since(before: Arrivals | None, now: Arrivals) -> Arrivals:
    if before is None:
        return Arrivals(0, 0.0)
    return Arrivals(max(0, now.requests - before.requests), max(0.0, now.tokens - before.tokens))


def _pool(role: Role, reports: Sequence[RouterReport]) -> PoolSight:
    accounts: dict[str, list[WorkerSight]] = {}
    for report in reports:
        for worker in report.workers:
            if worker.role is role:
                accounts.setdefault(worker.worker_id, []).append(worker)
    workers = list(accounts.values())
    if not workers:
        return PoolSight()
    return PoolSight(
        workers=len(workers),
        ready=sum(any(each.ready for each in told) for told in workers),
        queued_tokens=math.fsum(_most([each.queued_tokens for each in told]) for told in workers),
        sequences=math.fsum(_most([each.sequences for each in told]) for told in workers),
        kv_used=math.fsum(_most([each.kv_usage for each in told]) for told in workers),
        tokens_per_s=_mean([each.tokens_per_s for told in workers for each in told if each.tokens_per_s > 0]),
        step_s=_mean([each.step_s for told in workers for each in told]),
        sequence_s=_mean([each.sequence_s for told in workers for each in told]),
    )


def _most(told: list[float]) -> float:
    """The fullest account; NaN where one is no number of something."""
    return max(told) if all(math.isfinite(each) and each >= 0 for each in told) else math.nan


def _mean(told: list[float]) -> float:
    sound = [each for each in told if math.isfinite(each) and each >= 0]
    return math.fsum(sound) / len(sound) if sound else math.nan
