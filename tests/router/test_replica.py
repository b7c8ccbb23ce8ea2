"""A router that cannot start closes again what it had opened, and nothing runs on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.clock import RealClock
from cluster.config import parse_config
from cluster.errors import ConfigError
from cluster.membership import MemoryDirectory
from router import replica as module
from router.fleet import Fleet
from router.grpc_edge import GrpcEdge
from router.observation import RouterObservation
from router.replica import start_replica
from router.scaling_link import ScalingLink
from router.shared_state import SharedState
from tests.router.simulated_cluster import SECRET
from tests.router.test_grpc_edge import Script

CONFIG = parse_config({"model": {"path": "none"}, "engine": {"kind": "simulated"}, "router": {"grpc_port": 0}})


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that were closed, by name, in their order."""
    names: list[str] = []

    def note(part: type[Any]) -> None:
        close = part.close

        async def noted(self: Any, *args: Any) -> None:
            names.append(part.__name__)
            await close(self, *args)

        monkeypatch.setattr(part, "close", noted)

    for part in (RouterObservation, SharedState, GrpcEdge, Fleet, ScalingLink):
        note(part)
    monkeypatch.setenv(CONFIG.security.ticket_secret_env, SECRET)
    monkeypatch.setattr(module, "prepare_environment", lambda *_: None)
    return names


async def start_in_vain() -> None:
    with pytest.raises(ConfigError, match="in vain"):
        await start_replica(CONFIG, MemoryDirectory(RealClock()), RealClock())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_frontend_that_cannot_be_built_leaves_nothing_open(
    closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def frontend(*_: Any) -> Any:
        raise ConfigError("in vain")

    monkeypatch.setattr(module, "_frontend", frontend)
    await start_in_vain()
    assert closed == ["SharedState", "RouterObservation"]


async def test_a_fleet_that_cannot_start_leaves_nothing_open(
    closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def frontend(*_: Any) -> Any:
        return SimpleNamespace(app=None, text=Script(), close=lambda: closed.append("Frontend"))

    async def start(self: Fleet) -> None:
        raise ConfigError("in vain")

    monkeypatch.setattr(module, "_frontend", frontend)
    monkeypatch.setattr(Fleet, "start", start)
    await start_in_vain()
    assert closed == ["Fleet", "GrpcEdge", "Frontend", "SharedState", "RouterObservation"]
