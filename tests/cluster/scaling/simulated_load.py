"""The rule under a load that a test chooses: workers take as long to start as it says, time goes by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.config import parse_config
from cluster.engine import Role
from cluster.scaling.decision import Memory, PoolDecision, decide
from cluster.scaling.frame import ScalingOrders, ScalingSetup
from cluster.scaling.reports import PoolSight, Sight

PREFILL, DECODE = Role.PREFILL, Role.DECODE
TOKENS_PER_S, STEP_S, SEQUENCE_S = 1_000.0, 0.010, 0.001
SIZES = {PREFILL: 1, DECODE: 1}

Load = Callable[[dict[Role, int]], Sight]


def setup_of(prefill: Any = None, decode: Any = None, **autoscaling: Any) -> ScalingSetup:
    """Both pools from 1 to 10 unless said otherwise; a mapping without bounds is a pool of fixed size."""
    raw = {
        "model": {"path": "m"},
        "prefill": {"autoscale": {"max_replicas": 10}} if prefill is None else prefill,
        "decode": {"autoscale": {"max_replicas": 10}} if decode is None else decode,
        "autoscaling": autoscaling,
        "admission": {"queue": {"most_wait_s": 600.0}},
    }
    return ScalingSetup.of(parse_config(raw))


def sleeper(**more: Any) -> ScalingSetup:
    """Both pools may end, and do so soon."""
    asleep = {"autoscale": {"min_replicas": 0, "max_replicas": 4}}
    return setup_of(asleep, asleep, pace={"idle_s": 100.0}, **more)


def sight(
    sizes: dict[Role, int],
    tokens: float = 0.0,
    waiting: float = 0.0,
    sequences: float = 0.0,
    kv_used: float = 0.0,
    **more: Any,
) -> Sight:
    """`tokens` have arrived in prompts of 100 since the last look, `waiting` are queued at prefill workers."""
    pools = {
        PREFILL: PoolSight(sizes[PREFILL], sizes[PREFILL], waiting, 0.0, 0.0, TOKENS_PER_S, STEP_S, SEQUENCE_S),
        DECODE: PoolSight(sizes[DECODE], sizes[DECODE], 0.0, sequences, kv_used, TOKENS_PER_S, STEP_S, SEQUENCE_S),
    }
    given = {"arrived_requests": round(tokens / 100), "arrived_tokens": tokens, "in_flight": round(sequences)}
    return Sight(pools=pools, **(given | more))


class Course:
    """What happens to the pools from second to second. Workers are there `start_s` after they are wanted."""

    def __init__(self, setup: ScalingSetup, sizes: dict[Role, int] | None = None, start_s: float = 0.0) -> None:
        self.setup = setup
        self.start_s = start_s
        self.orders = ScalingOrders()
        self.now = 1_000.0
        self.memory = Memory.fresh(SIZES if sizes is None else sizes, self.now)
        self.decided: dict[Role, PoolDecision] = {}
        self._there_at = {role: [self.now] * size for role, size in self.sizes.items()}

    @property
    def there(self) -> dict[Role, int]:
        """How many workers have started."""
        return {role: sum(at <= self.now for at in each) for role, each in self._there_at.items()}

    @property
    def sizes(self) -> dict[Role, int]:
        return {role: pool.size for role, pool in self.memory.pools.items()}

    def look(self, seen: Sight, after_s: float = 1.0) -> dict[Role, int]:
        self.now += after_s
        self.memory, self.decided = decide(self.setup, self.orders, self.memory, seen, self.now)
        for role, size in self.sizes.items():  # whoever would come last goes first
            each = self._there_at[role][:size]
            self._there_at[role] = each + [self.now + self.start_s] * (size - len(each))
        return self.sizes

    def run(self, seconds: int, load: Load) -> list[dict[Role, int]]:
        """The sizes at each second, under what `load` makes of the workers that are there."""
        return [self.look(load(self.there)) for _ in range(seconds)]


class Prompts:
    """So many prompt tokens a second; what the prefill workers that are there do not compute has to wait."""

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        self.waiting = 0.0

    def __call__(self, there: dict[Role, int]) -> Sight:
        self.waiting = max(0.0, self.waiting + self.tokens - there[PREFILL] * TOKENS_PER_S)
        return sight(there, self.tokens, self.waiting)


def constant(tokens: float = 0.0, sequences: float = 0.0) -> Load:
    """So many prompt tokens a second and so many sequences, whatever the sizes. Nothing waits for long."""
    return lambda sizes: sight(sizes, tokens, 0.1 * tokens, sequences, 0.01 * sequences)
