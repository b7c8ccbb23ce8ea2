"""What tenants get of a cluster that is asked for too much: shares by weight, and first tokens beside another's flood.

    python -m tests.benchmarks.tenants [--json] [--rounds N]

A router's fleet over real gRPC in front of simulated engines, in real time: an engine's step takes time and hardly any
processor. Each round sends one tenant's requests twice, alone and beside a flood, at the same times with the same
prompts; samples of all rounds are put together. On a busy machine first tokens say more about the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop

from cluster.clock import RealClock
from cluster.config import RouterConfig
from router.fleet import Fleet
from tests.router.dispatch_parts import parts
from tests.router.simulated_cluster import SECRET, Clients, SimulatedCluster
from tests.router.tenant_load import (
    DECODE,
    OVERLOAD,
    POOLS,
    PREFILL,
    WEIGHTS,
    Load,
    gate_for,
    overload,
    quantile,
    share_error,
    shares_of,
    victim,
)
from tests.waiting import eventually

CAPACITY_S, OVERLOAD_S, ROUND_S = 8.0, 24.0, 20.0


@asynccontextmanager
async def fresh_load(weights: dict[str, float]) -> AsyncIterator[Load]:
    """To a cluster and a router of its own, for tenants of these weights."""
    cluster, clock = SimulatedCluster(PREFILL, DECODE), RealClock()
    made = parts(clock.now, gate=gate_for(weights, clock.now))
    fleet = Fleet(RouterConfig(), cluster.directory, clock, "router", 7, made)
    await fleet.start()
    try:
        for role, workers in POOLS.items():
            for number in range(workers):
                await cluster.add(f"{role.value}{number}", role)
        await eventually(lambda: len(list(fleet.dispatch.view)) == sum(POOLS.values()))
        yield Load(Clients(fleet.dispatch, "r", clock), clock)
        fleet.check()
        fleet.dispatch.check_integrity()
    finally:
        await fleet.close()
        await cluster.close()


async def capacity() -> float:
    """Tokens a second."""
    async with fresh_load({}) as load:
        await load.circle(CAPACITY_S)
    return load.served("any", CAPACITY_S / 4, CAPACITY_S) / (CAPACITY_S * 3 / 4)


async def shares(tokens_per_s: float) -> dict[str, float]:
    async with fresh_load(WEIGHTS) as load:
        await load.run(overload(tokens_per_s), OVERLOAD_S, seed=1)
    return shares_of(load, OVERLOAD_S)


async def one_round(tokens_per_s: float, flooded: bool, seed: int) -> Load:
    async with fresh_load({}) as load:
        await load.run(victim(tokens_per_s, flooded), ROUND_S, seed)
    return load


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, object]:
    """The benchmark's result object. `share_error`: of the tenant that is furthest from its weight, as a part of it."""
    os.environ[PREFILL.security.ticket_secret_env] = SECRET
    tokens_per_s = uvloop.run(capacity())
    say(f"capacity: {tokens_per_s:.0f} tokens/s")
    got = uvloop.run(shares(tokens_per_s))
    say(f"shares: {got}")
    alone: list[float] = []
    beside: list[float] = []
    refused = {"victim": 0, "flood": 0}
    for seed in range(rounds):
        for flooded, samples in ((False, alone), (True, beside)):
            load = uvloop.run(one_round(tokens_per_s, flooded, seed))
            samples += load.ttfts("victim")
            refused = {tenant: count + load.refused(tenant) for tenant, count in refused.items()}
            text = "beside a flood" if flooded else "alone"
            say(f"round {seed + 1}/{rounds}, {text}: p99 {_ms(quantile(load.ttfts('victim'), 0.99))} ms")
    return {
        "capacity_tokens_per_s": round(tokens_per_s),
        "overload": OVERLOAD,
        "shares": {tenant: round(share, 4) for tenant, share in got.items()},
        "weights": WEIGHTS,
        "share_error": round(share_error(got), 4),
        "ttft_p99_ms": _compared(alone, beside, 0.99),
        "ttft_p50_ms": _compared(alone, beside, 0.5),
        "samples": {"alone": len(alone), "beside_flood": len(beside)},
        "refused": refused,
        "rounds": rounds,
    }


def _compared(alone: list[float], beside: list[float], part: float) -> dict[str, float]:
    before, after = quantile(alone, part), quantile(beside, part)
    return {"alone": _ms(before), "beside_flood": _ms(after), "ratio": round(after / before, 3)}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    result = measure(arguments.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
