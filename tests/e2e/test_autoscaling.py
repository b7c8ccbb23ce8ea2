"""Pools of a live cluster follow the load, each its own; nothing fails meanwhile, and nothing moves without need."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from protos.baton.v1 import admin_pb2, admin_pb2_grpc
from tests.e2e.paced_load import Kind, PacedLoad
from tests.live_cluster import BATON, live_cluster, local_config
from tests.waiting import eventually

pytestmark = [
    pytest.mark.engine,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(580),
]

VOCABULARY = 2_000
CHANGE_S = 90.0
STEADY_S = 10.0
ENGINE = {"step_s": 0.02, "prefill_token_s": 0.001, "num_blocks": 100, "vocabulary": VOCABULARY}
POOL = {"autoscale": {"min_replicas": 0, "max_replicas": 3}, "drain_s": 5.0, "cpus_per_replica": 0.1}
PACE = {"down_after_s": 6.0, "down_cooldown_s": 2.0, "idle_s": 5.0}
CALM_S = 30.0  # longer than the way from one size to the next, after a first guess that was too high
FORECAST = {"level_s": 2.0, "trend_s": 4.0, "horizon_s": 4.0}

LONG_PROMPTS = Kind(per_s=5.0, prompt_tokens=160, max_tokens=2)
"""800 prompt tokens a second, of which a worker computes some 900: at 70 % busy that is work for 1.3, far from one and
from two. Several come within each second, so that a late look does not see twice as many."""
LONG_ANSWERS = Kind(per_s=2.5, prompt_tokens=50, max_tokens=250)
"""Each 5 s and 10 of the 100 blocks: 1.25 caches' worth, to be filled to 80 %, is more than one and less than two."""


@dataclass
class Cluster:
    http: str
    channel: grpc.aio.Channel
    endpoint: str

    async def report(self) -> admin_pb2.AutoscaleReport:
        admin = admin_pb2_grpc.AdminStub(self.channel)
        return await admin.Autoscale(admin_pb2.AutoscaleRequest(), timeout=10, wait_for_ready=True)

    async def sizes(self) -> tuple[int, int] | None:
        """Prefill, decode; None while Serve starts or stops some."""
        pools = (await self.report()).pools
        prefill, decode = (pool.running for pool in pools)
        return (prefill, decode) if all(pool.running == pool.size for pool in pools) else None

    async def deserted(self) -> bool:
        """No router sees a worker any more."""
        admin = admin_pb2_grpc.AdminStub(self.channel)
        return not (await admin.Status(admin_pb2.StatusRequest(), timeout=10)).workers

    async def changes(self) -> list[str]:
        """All that the autoscaler remembers, the newest first."""
        changes = [(change, pool.role) for pool in (await self.report()).pools for change in pool.changes]
        changes.sort(key=lambda each: -each[0].unix_s)
        return [f"{role} {change.before} -> {change.after}: {change.because}" for change, role in changes]

    async def becomes(self, *wanted: tuple[int, int]) -> None:
        """One of these."""

        async def so() -> bool:
            return await self.sizes() in wanted

        try:
            await eventually(so, within_s=CHANGE_S)
        except TimeoutError as error:
            raise AssertionError(f"none of {wanted}: {await self.report()}") from error

    async def settles(self) -> None:
        """Nothing has changed for a while."""
        give_up = time.monotonic() + CHANGE_S
        before, since = await self.changes(), time.monotonic()
        while time.monotonic() - since < CALM_S:
            assert time.monotonic() < give_up, f"it does not come to rest: {before}"
            await asyncio.sleep(0.5)
            if (now := await self.changes()) != before:
                before, since = now, time.monotonic()

    async def baton(self, *arguments: str) -> Any:
        """What the command says, as a document."""
        command = [str(BATON), *arguments, "-e", self.endpoint, "-o", "json"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        return json.loads(output)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scaled(demo_model: Path) -> AsyncIterator[Cluster]:
    config = local_config(
        demo_model,
        "autoscaling",
        engine={"kind": "simulated", "options": {}, "simulated": ENGINE},
        prefill=dict(POOL),
        decode=dict(POOL),
        admission={"queue": {"most_wait_s": 240.0}},
        autoscaling={"pace": PACE, "forecast": FORECAST},
    )
    for pool in ("prefill", "decode"):
        del config[pool]["replicas"]
    with live_cluster(config) as live:
        async with grpc.aio.insecure_channel(live.grpc) as channel:
            yield Cluster(live.http, channel, live.grpc)


async def test_each_pool_follows_its_own_load_up_and_down_to_zero_and_back(scaled: Cluster) -> None:
    load = PacedLoad(scaled.http, VOCABULARY)
    await load.ask(prompt_tokens=50, max_tokens=5)  # both pools begin with it
    await scaled.becomes((1, 1))
    async with load.pace(LONG_PROMPTS):
        await scaled.becomes((2, 1), (3, 1))
        await scaled.settles()
        before = await scaled.changes()
        await asyncio.sleep(STEADY_S)
        assert await scaled.changes() == before, "constant load, and a pool changed"
    async with load.pace(LONG_ANSWERS):
        await scaled.becomes((1, 2), (1, 3))
    await scaled.becomes((0, 0))
    await eventually(scaled.deserted, within_s=CHANGE_S)
    await load.ask(prompt_tokens=50, max_tokens=5)
    assert load.failed == []
    assert load.answered > 20


async def test_orders_hold_against_the_load_until_they_are_taken_back(scaled: Cluster) -> None:
    load = PacedLoad(scaled.http, VOCABULARY)
    async with load.pace(Kind(per_s=1.0, prompt_tokens=50, max_tokens=5)):
        told = await scaled.baton("scale", "prefill=2", "decode=1..3")
        assert [(pool["least"], pool["most"], pool["ordered"]) for pool in told["pools"]] == [
            (2, 2, True),
            (1, 3, True),
        ]
        await scaled.becomes((2, 1))
        assert (await scaled.baton("autoscale", "pause", "--reason", "audit"))["pauseReason"] == "audit"
        await scaled.baton("scale", "prefill=auto")
        explained = await scaled.baton("autoscale", "explain")
        prefill = explained["pools"][0]
        assert (prefill["size"], prefill["because"]) == (2, "paused: audit")
        assert prefill["inputs"]["tokens/s of a worker"] > 0
        assert prefill["changes"][0]["after"] == 2
        await scaled.baton("autoscale", "resume")
        await scaled.becomes((1, 1))
    assert load.failed == []
