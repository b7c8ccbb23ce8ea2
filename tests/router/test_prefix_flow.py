"""Conversations over simulated engines and real gRPC: every turn finds the blocks of the turns before it."""

from __future__ import annotations

import functools
import random
from contextlib import AsyncExitStack

import pytest

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.engine import Role, Sampling
from cluster.membership import MemoryDirectory
from router.fleet import Fleet
from router.generation import GenerationRequest
from router.prefix_index import PrefixIndex
from tests.router.dispatch_parts import BLOCK_TOKENS, new_journal, parts
from tests.router.test_fleet import TTL_S, Listener
from tests.router.test_watch_flow import CONFIG, new_worker
from tests.waiting import eventually

OUTPUT = 5


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, "a secret that only the tests know")


async def test_from_the_second_turn_on_every_reusable_block_is_a_hit() -> None:
    directory, clock, listener, journal = MemoryDirectory(RealClock()), RealClock(), Listener(), new_journal()
    # How long prompts this short take says more about the machine than about where their blocks are.
    made = parts(clock.now, journal=journal, affinity_share=1.0, affinity_most_s=60.0)
    fleet, index = Fleet(RouterConfig(), directory, clock, "router-1", 7, made), made.placing.placement.index
    fleet.dispatch.connect(listener)
    async with AsyncExitStack() as stack:
        await fleet.start()
        stack.push_async_callback(fleet.close)
        for worker_id, role in (("p1", Role.PREFILL), ("p2", Role.PREFILL), ("d1", Role.DECODE), ("d2", Role.DECODE)):
            worker, _ = await new_worker(worker_id, role, 1)
            stack.push_async_callback(worker.close)
            await worker.start()
            await directory.announce(worker.record, TTL_S)
        await eventually(lambda: len(list(fleet.dispatch.view)) == 4)
        draw = random.Random(5)
        said: list[int] = []
        reusable = hits = wrong = 0
        for turn in range(8):
            before = len(said) // BLOCK_TOKENS
            said += [draw.randrange(4_096) for _ in range(draw.randrange(20, 40))]
            fleet.dispatch.submit(GenerationRequest(f"t{turn}", list(said), Sampling(OUTPUT), session_id="talk"))
            await listener.until_ended(f"t{turn}")
            record = journal.find(f"t{turn}")
            assert record is not None
            # The first snapshot of a worker that has just come may be on its way until now.
            used = [attempt.worker_id for attempt in record.attempts]
            await eventually(functools.partial(_hold_something, index, used))
            assert record.cached_tokens_actual is not None
            reusable, hits = reusable + before, hits + min(record.cached_tokens_actual // BLOCK_TOKENS, before)
            wrong += abs(record.cached_tokens_actual - record.cached_tokens_predicted)
        assert hits == reusable > 20
        assert wrong == 0
        fleet.dispatch.check_integrity()


def _hold_something(index: PrefixIndex, worker_ids: list[str]) -> bool:
    return all(index.held_by(worker_id) for worker_id in worker_ids)
