"""The autoscaler: hears routers, operators and Serve, decides once a period, and remembers why.

Pure state, moved by calls that carry the time. Where it runs, and who calls, is not its business. Everybody who calls
brings the orders that he knows: so they outlive it, and every router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.engine import Role
from cluster.errors import RetryLater
from cluster.scaling.decision import Memory, PoolDecision, decide
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup, checked_order, effective_bounds
from cluster.scaling.reports import Arrivals, Heard, RouterReport, see

_CHANGES = 20
_GONE_AFTER = 6.0
"""A router that has been silent for so many times `stale_s` is gone: its requests ended with it."""
_POLICY_GONE_S = 10.0
"""A policy that has said nothing for so long went with its controller. The next one may be born earlier by the clock of
another machine, and counts all the same."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The same moment on a clock that never jumps, and in seconds since 1970 for people."""

    at: float
    unix_s: float


@dataclass(frozen=True, slots=True)
class ServedPool:
    """A pool as Serve has it: `size` is wanted now, and so many are `running`. `policy_born`: when the policy that says
    so was built, on the clock of its machine that never jumps."""

    role: Role
    size: int
    running: int
    policy_born: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What callers take home. `sizes` are None before the first decision; `bounds` are those that hold now. Of the
    pools in `starting` fewer workers run than are wanted. `replaced`: the policy that asks is not its pool's newest, so
    that nothing it said counts."""

    orders: ScalingOrders
    bounds: Mapping[Role, Bounds]
    sizes: Mapping[Role, int] | None = None
    starting: frozenset[Role] = frozenset()
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    unix_s: float
    before: int
    after: int
    because: str


@dataclass(frozen=True, slots=True)
class PoolAccount:
    """`decision` is None before the first. `changes`: the newest first."""

    scales: bool
    ordered: bool
    bounds: Bounds
    running: int
    decision: PoolDecision | None
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that an operator may want to know. `decided_s`: since the last decision."""

    pools: Mapping[Role, PoolAccount]
    orders: ScalingOrders
    decided_s: float | None
    routers: Mapping[str, float]
    cost: float
    budget: float | None


@dataclass(frozen=True, slots=True)
class _Policy:
    """The newest one heard so far. Serve builds one for each pool with every deployment and drops the one before
    without a word: that one may go on asking for a while."""

    born: float
    heard_at: float

    def gives_way_to(self, other: _Policy) -> bool:
        return other.born >= self.born or other.heard_at - self.heard_at > _POLICY_GONE_S


class Autoscaler:
    """`hear`, `stand` and `order` may come in any order and from anybody; the decision is made in `stand`."""

    def __init__(self) -> None:
        self._setup: ScalingSetup | None = None
        self._setup_from: _Policy | None = None
        self._sizes_from: dict[Role, _Policy] = {}
        self._orders = ScalingOrders()
        self._memory: Memory | None = None
        self._reports: dict[str, tuple[RouterReport, float]] = {}
        self._arrivals: Mapping[str, Arrivals] = {}
        self._sizes: dict[Role, int] = {}  # as Serve says they are wanted
        self._running: dict[Role, int] = {}
        self._decisions: Mapping[Role, PoolDecision] = {}
        self._changes = {role: deque[Change](maxlen=_CHANGES) for role in Role}

    def hear(self, report: RouterReport, orders: ScalingOrders, now: Moment) -> Standing | None:
        """A router's report. None: no pool has been introduced yet."""
        self._reports[report.router_id] = (report, now.at)
        self._adopt(orders)
        return None if self._setup is None else self._standing(self._setup)

    def stand(self, setup: ScalingSetup, pool: ServedPool, orders: ScalingOrders, now: Moment) -> Standing:
        """Serve's side. Answers with the sizes to have. The setup is that of the newest policy, whatever its pool."""
        policy, before = _Policy(pool.policy_born, now.at), self._sizes_from.get(pool.role)
        if self._setup is None or self._setup_from is None or self._setup_from.gives_way_to(policy):
            self._setup, self._setup_from = setup, policy
        if counts := before is None or before.gives_way_to(policy):
            self._sizes_from[pool.role] = policy
            self._sizes[pool.role], self._running[pool.role] = pool.size, pool.running
        self._adopt(orders)
        if self._due(self._setup, now):
            self._decide(self._setup, now)
        return replace(self._standing(self._setup), replaced=not counts)

    def order(self, bounds: Mapping[Role, Bounds | None], now: Moment) -> Standing:
        """New bounds; None: those of the configuration. Raises `InvalidRequest`, `RetryLater`."""
        setup = self._introduced()
        self._orders = checked_order(setup, self._orders, bounds)
        self._decide_now(setup, now)
        return self._standing(setup)

    def pause(self, reason: str | None, now: Moment) -> Standing:
        """Sizes stay as they are, but for orders; None: they do not any more. Raises `RetryLater`."""
        setup = self._introduced()
        self._orders = ScalingOrders(self._orders.version + 1, self._orders.bounds, reason)
        self._decide_now(setup, now)
        return self._standing(setup)

    def account(self, now: Moment) -> Account:
        """Raises `RetryLater`."""
        setup = self._introduced()
        bounds = effective_bounds(setup, self._orders)
        pools = {
            role: PoolAccount(
                scales=frame.scales,
                ordered=role in self._orders.bounds,
                bounds=bounds[role],
                running=self._running.get(role, frame.configured.least),
                decision=self._decisions.get(role),
                changes=tuple(self._changes[role]),
            )
            for role, frame in setup.pools.items()
        }
        sizes = {} if self._memory is None else {role: pool.size for role, pool in self._memory.pools.items()}
        decided_s = None if self._memory is None else now.at - self._memory.looked_at
        routers = {router_id: now.at - at for router_id, (_, at) in self._reports.items()}
        return Account(pools, self._orders, decided_s, routers, setup.cost(sizes), setup.rule.budget)

    # Inside

    def _introduced(self) -> ScalingSetup:
        if self._setup is None:
            raise RetryLater(
                "the autoscaler has just begun and does not know the pools yet: try again in a moment", 1.0
            )
        return self._setup

    def _standing(self, setup: ScalingSetup) -> Standing:
        bounds = effective_bounds(setup, self._orders)
        if self._memory is None:
            return Standing(self._orders, bounds)
        sizes = {role: pool.size for role, pool in self._memory.pools.items()}
        starting = frozenset(role for role, size in sizes.items() if self._running.get(role, size) < size)
        return Standing(self._orders, bounds, sizes, starting)

    def _adopt(self, orders: ScalingOrders) -> None:
        if orders.version > self._orders.version:
            self._orders = orders

    def _due(self, setup: ScalingSetup, now: Moment) -> bool:
        if any(frame.scales and role not in self._sizes for role, frame in setup.pools.items()):
            return False  # a pool that has not come yet
        return self._memory is None or now.at - self._memory.looked_at >= setup.rule.period_s

    def _decide_now(self, setup: ScalingSetup, now: Moment) -> None:
        """Operators need not wait for the period."""
        if self._memory is not None:
            self._decide(setup, now)

    def _decide(self, setup: ScalingSetup, now: Moment) -> None:
        if self._memory is None:
            found = {role: self._sizes.get(role, frame.configured.least) for role, frame in setup.pools.items()}
            self._memory = Memory.fresh(found, now.at)
        gone_s = _GONE_AFTER * setup.rule.stale_s
        self._reports = {id_: told for id_, told in self._reports.items() if now.at - told[1] <= gone_s}
        heard = [Heard(report, now.at - at) for report, at in self._reports.values()]
        sight, self._arrivals = see(heard, self._arrivals, setup.rule.stale_s)
        self._memory, self._decisions = decide(setup, self._orders, self._memory, sight, now.at)
        for role, decision in self._decisions.items():
            if decision.size != decision.before:
                change = Change(now.unix_s, decision.before, decision.size, decision.because)
                self._changes[role].appendleft(change)


def fixed_account(setup: ScalingSetup) -> Account:
    """Of pools that nobody scales."""
    pools = {
        role: PoolAccount(frame.scales, False, frame.configured, frame.configured.least, None, ())
        for role, frame in setup.pools.items()
    }
    sizes = {role: pool.running for role, pool in pools.items()}
    return Account(pools, ScalingOrders(), None, {}, setup.cost(sizes), setup.rule.budget)
