"""What `VllmEngine` asks of an engine core that is in the middle of a long step. No engine is started."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from cluster.config import EngineConfig, ModelConfig
from cluster.kv_link import KvStats
from cluster.vllm_environment import prepare_environment

if TYPE_CHECKING:
    from cluster.vllm_engine import VllmEngine

pytestmark = pytest.mark.engine  # importing vllm takes many seconds


class LongStep:
    """A client of an engine core. Its utility calls are answered between steps only: while `over` is set."""

    def __init__(self, link: Link) -> None:
        self.over = asyncio.Event()
        self.link = link
        self.outputs: list[Any] = []

    async def call_utility_async(self, name: str) -> str:
        await self.over.wait()
        self.link.pending = 0
        return name

    async def get_output_async(self) -> Any:
        from vllm.v1.engine import EngineCoreOutputs

        return EngineCoreOutputs(outputs=self.outputs)

    async def reset_prefix_cache_async(self) -> bool:
        return not self.link.pending


class Link:
    """The line to a connector with one lease."""

    def __init__(self) -> None:
        self.leases = 1
        self.pending = 0

    async def stats(self) -> KvStats:
        return KvStats(leases=self.leases, pinned_blocks=self.leases + self.pending, pending_releases=self.pending)

    async def release(self, lease_id: str) -> None:
        self.leases, self.pending = self.leases - 1, self.pending + 1

    async def close(self) -> None: ...


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def core(link: Link) -> LongStep:
    return LongStep(link)


@pytest.fixture
def engine(link: Any, core: LongStep) -> VllmEngine:
    model, config = ModelConfig(path="none"), EngineConfig()
    prepare_environment(model, config)  # before vllm is imported
    from cluster.vllm_core import VllmSpec
    from cluster.vllm_engine import VllmEngine

    made: Any = VllmEngine(VllmSpec(model, config), link)
    made._core = SimpleNamespace(client=core)
    engine: VllmEngine = made
    return engine


async def test_a_lease_is_released_in_the_middle_of_a_step(engine: VllmEngine, link: Link) -> None:
    async with asyncio.timeout(5):
        await engine.release("a lease")
    assert (link.leases, link.pending) == (0, 1)


async def test_an_engine_is_counted_in_the_middle_of_a_step(engine: VllmEngine) -> None:
    await engine.release("a lease")
    async with asyncio.timeout(5):
        stats = await engine.stats()
    assert (stats.leases, stats.pinned_blocks, stats.pending_releases) == (0, 1, 1)


async def test_blocks_of_ended_leases_come_back_with_the_next_step(engine: VllmEngine, core: LongStep) -> None:
    await engine.release("a lease")
    settling = asyncio.create_task(engine.settle())
    core.over.set()
    await asyncio.wait_for(settling, 5)
    assert (await engine.stats()).pinned_blocks == 0


async def test_prefixes_are_forgotten_once_the_blocks_of_ended_leases_are_back(
    engine: VllmEngine, core: LongStep
) -> None:
    core.over.set()
    await engine.release("a lease")
    async with asyncio.timeout(5):
        assert await engine.forget_prefixes()


async def test_the_ticket_of_a_prefill_that_finished_as_it_was_aborted_is_told_and_nothing_else(
    engine: VllmEngine, core: LongStep
) -> None:
    from vllm.v1.engine import EngineCoreOutput

    core.outputs = [
        EngineCoreOutput("finished", [5], kv_transfer_params={"ticket": b"its blocks are pinned"}),
        EngineCoreOutput("in the middle", [5]),
    ]
    assert [(output.attempt_id, output.ticket) for output in await engine.step()] == [
        ("finished", b"its blocks are pinned")
    ]
