"""The rule under a load that a test chooses: workers are there as soon as they are wanted, time goes by hand."""

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
    """What happens to the pools from second to second."""

    def __init__(self, setup: ScalingSetup, sizes: dict[Role, int] | None = None) -> None:
        self.setup = setup
        self.orders = ScalingOrders()
        self.now = 1_000.0
        self.memory = Memory.fresh(SIZES if sizes is None else sizes, self.now)
        self.decided: dict[Role, PoolDecision] = {}

    @property
    def sizes(self) -> dict[Role, int]:
        return {role: pool.size for role, pool in self.memory.pools.items()}

    def look(self, seen: Sight, after_s: float = 1.0) -> dict[Role, int]:
        self.now += after_s
        self.memory, self.decided = decide(self.setup, self.orders, self.memory, seen, self.now)
        return self.sizes

    def run(self, seconds: int, load: Callable[[dict[Role, int]], Sight]) -> list[dict[Role, int]]:
        """The sizes at each second, under what `load` makes of the sizes before."""
        return [self.look(load(self.sizes)) for _ in range(seconds)]


def constant(tokens: float = 0.0, sequences: float = 0.0) -> Callable[[dict[Role, int]], Sight]:
    """So many prompt tokens a second and so many sequences, whatever the sizes. Nothing waits for long."""
    return lambda sizes: sight(sizes, tokens, 0.1 * tokens, sequences, 0.01 * sequences)
