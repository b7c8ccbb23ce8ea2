"""An `Autoscaling` document as tables: what `show` says of each pool, and all that `explain` adds."""

from __future__ import annotations

import time

from deploy.cli.amounts import age
from deploy.cli.autoscale_document import Autoscaling, Pool
from deploy.cli.output import Table


def summary(told: Autoscaling) -> list[Table]:
    rows = [
        (pool.pool, str(pool.size), str(pool.running), _bounds(pool), _last(pool), pool.because) for pool in told.pools
    ]
    return [Table(_title(told), ("pool", "size", "running", "bounds", "changed", "because"), rows)]


def explanation(told: Autoscaling) -> list[Table]:
    return [*summary(told), _inputs(told), _needs(told), _limits(told), _changes(told)]


def _title(told: Autoscaling) -> str:
    cost = f"cost {told.cost:g}" + ("" if told.budget is None else f" of {told.budget:g}")
    decided = "nothing decided yet" if told.decided_s is None else f"decided {told.decided_s:.1f} s ago"
    paused = f", paused: {told.pause_reason}".removesuffix(": ") if told.paused else ""
    return f"Autoscaling ({decided}, {cost}{paused})"


def _bounds(pool: Pool) -> str:
    if not pool.scales:
        return "fixed"
    bounds = str(pool.least) if pool.least == pool.most else f"{pool.least}..{pool.most}"
    return f"{bounds} (ordered)" if pool.ordered else bounds


def _last(pool: Pool) -> str:
    return _ago(pool.changes[0].at) if pool.changes else "-"


def _inputs(told: Autoscaling) -> Table:
    rows = [(pool.pool, name, _number(value)) for pool in told.pools for name, value in pool.inputs.items()]
    return Table("What is known", ("pool", "input", "value"), rows)


def _needs(told: Autoscaling) -> Table:
    rows = [(pool.pool, need.rule, _number(need.workers), need.because) for pool in told.pools for need in pool.needs]
    return Table("What each rule wants", ("pool", "rule", "workers", "because"), rows)


def _limits(told: Autoscaling) -> Table:
    rows = [(pool.pool, limit.name, str(limit.size), limit.because) for pool in told.pools for limit in pool.limits]
    return Table("What bound it", ("pool", "limit", "size", "because"), rows)


def _changes(told: Autoscaling) -> Table:
    rows = [
        (pool.pool, _ago(change.at), f"{change.before} -> {change.after}", change.because)
        for pool in told.pools
        for change in pool.changes
    ]
    return Table("Last changes", ("pool", "when", "size", "because"), rows)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _ago(unix_s: float) -> str:
    return f"{age(max(0.0, time.time() - unix_s))} ago"
