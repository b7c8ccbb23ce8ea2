"""Two tenants with one prompt, over simulated engines: no block of one is ever another's, unless they may share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.cache_salt import CacheSalts
from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.config_admission import AdmissionConfig
from cluster.config_security import NO_TENANT
from cluster.engine import Role, Sampling
from router.caller import Caller
from router.fleet import Fleet
from router.generation import GenerationRequest
from router.guard import Guard
from router.journal import Journal
from tests.router.dispatch_parts import BLOCK_TOKENS, new_journal, parts
from tests.router.simulated_cluster import SECRET, SimulatedCluster, engine_config
from tests.router.test_fleet import Listener
from tests.waiting import eventually

CONFIG = engine_config(step_s=0.001)
BLOCKS = 8
PROMPT = list(range(1, BLOCKS * BLOCK_TOKENS + 2))  # the last token is always computed
TENANTS = {name: {"prefix_group": "friends"} for name in ("friend", "other-friend")}
SALTS = CacheSalts(SECRET.encode())


@dataclass
class Stage:
    cluster: SimulatedCluster
    fleet: Fleet
    listener: Listener
    journal: Journal
    asked: list[str] = field(default_factory=list)

    @property
    def held(self) -> dict[str, frozenset[int]]:
        return {worker_id: running.held for worker_id, running in self.cluster.workers.items()}

    async def ask(self, caller: Caller, wished: str = "") -> int:
        """How many blocks of the prompt were found in a cache."""
        self.asked.append(f"r{len(self.asked)}")
        request = GenerationRequest(
            self.asked[-1], PROMPT, Sampling(1), cache_salt=caller.salted(wished), caller=caller
        )
        self.fleet.dispatch.submit(request)
        await self.listener.until_ended(request.request_id)
        record = self.journal.find(request.request_id)
        assert record is not None
        assert record.cached_tokens_actual is not None
        return record.cached_tokens_actual // BLOCK_TOKENS


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, SECRET)
    cluster, clock, listener, journal = SimulatedCluster(CONFIG), RealClock(), Listener(), new_journal()
    fleet = Fleet(RouterConfig(), cluster.directory, clock, "router-1", 7, parts(clock.now, journal=journal))
    fleet.dispatch.connect(listener)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await cluster.add("p1", Role.PREFILL)
        await cluster.add("d1", Role.DECODE)
        await fleet.start()
        stack.push_async_callback(fleet.close)
        await eventually(lambda: len(list(fleet.dispatch.view)) == 2)
        yield Stage(cluster, fleet, listener, journal)


def guard(tenants: Mapping[str, Any] | None = None) -> Guard:
    return Guard(None, SALTS, AdmissionConfig.model_validate({"tenants": tenants or {}}))


async def test_a_tenant_finds_its_own_blocks_and_nobody_elses(stage: Stage) -> None:
    acme, other = guard().named("acme", ""), guard().named("other", "")
    assert await stage.ask(acme) == 0
    of_acme = stage.held
    assert all(len(held) >= BLOCKS for held in of_acme.values() if held)
    assert await stage.ask(other) == 0
    for worker_id, held in stage.held.items():
        assert len(held) == 2 * len(of_acme[worker_id]), "the second tenant's blocks are all new"
    assert [await stage.ask(acme), await stage.ask(other)] == [BLOCKS, BLOCKS]


async def test_what_a_client_asks_for_never_reaches_another_tenants_blocks(stage: Stage) -> None:
    acme, other = guard().named("acme", ""), guard().named("other", "")
    assert await stage.ask(acme, "team") == 0
    for wished in ("", "team", acme.salted("team"), acme.salted("")):
        assert await stage.ask(other, wished) == 0
        assert await stage.ask(Caller(), wished) == 0
    assert await stage.ask(acme) == 0, "its own requests are apart too, if its client asks for it"
    assert await stage.ask(acme, "team") == BLOCKS


async def test_tenants_of_one_group_share(stage: Stage) -> None:
    friends = guard(TENANTS)
    assert await stage.ask(friends.named("friend", "")) == 0
    assert await stage.ask(friends.named("other-friend", "")) == BLOCKS
    assert await stage.ask(friends.named("stranger", "")) == 0


async def test_without_tenants_nothing_changes(stage: Stage) -> None:
    nobody = guard().named(NO_TENANT, "")
    assert nobody.salted("") == ""
    assert await stage.ask(Caller()) == 0
    assert await stage.ask(nobody) == BLOCKS
