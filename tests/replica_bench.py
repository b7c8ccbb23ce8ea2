"""Makes a replica of a pool as Serve does, without a cluster: constructor and destructor awaited by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest

from cluster.clock import RealClock
from cluster.config import Config, parse_config
from cluster.membership import MemoryDirectory, WorkerRecord


def simulated_config(**sections: Any) -> Config:
    return parse_config({"model": {"path": "none"}, "engine": {"kind": "simulated"}} | sections)


async def announced(directory: MemoryDirectory) -> tuple[WorkerRecord, ...]:
    return (await anext(directory.watch())).workers


async def announced_one(directory: MemoryDirectory) -> WorkerRecord:
    """Waits for the first worker."""
    async with asyncio.timeout(10):
        async for membership in directory.watch():
            if membership.workers:
                return membership.workers[0]
    raise AssertionError("the directory ended")


@asynccontextmanager
async def replica_of(
    deployment: ModuleType, class_name: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Any, MemoryDirectory]]:
    """The replica and the directory in which it announces itself."""
    directory = MemoryDirectory(RealClock())
    monkeypatch.setattr("kv_transfer.deployment.RayDirectory", lambda name: directory)
    monkeypatch.setenv(config.security.ticket_secret_env, "0123456789abcdef0123")
    # Serve awaits the destructor; the collector would only make a coroutine of it that nobody awaits.
    awaited_by_hand = type(class_name, (getattr(deployment, class_name),), {"__del__": lambda replica: None})
    replica: Any = object.__new__(awaited_by_hand)
    await replica.__init__(config)
    try:
        yield replica, directory
    finally:
        await replica.stop()
