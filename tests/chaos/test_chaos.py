"""A few of every fault, on a real cluster under load: `make chaos` deals many more. And what of Ray may die."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.__main__ import break_scene, left_behind
from tests.chaos.faults import KINDS
from tests.chaos.load import Clients, End
from tests.chaos.scene import Scene, scene
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="module")]

REQUESTS, CLIENTS, EVERY_S = 250, 16, 1.5
BACK_S = 60.0
NOTICED_S = 3.0  # until nobody is sent to a router that is gone


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene(tmp_path_factory.mktemp("chaos")) as made:
        yield made


async def test_no_stream_is_lost_wrong_or_hung_whatever_dies(made: Scene) -> None:
    said: list[str] = []
    told = await break_scene(made, 7, REQUESTS, CLIENTS, EVERY_S, said.append)
    wrong = {key: told[key] for key in ("lost", "wrong_tokens", "hangs", "leaks")}
    assert wrong == {"lost": 0, "wrong_tokens": 0, "hangs": 0, "leaks": 0}, "\n".join(said)
    faults = told["faults"]
    assert isinstance(faults, dict)
    assert set(faults) == set(KINDS)


@pytest.mark.parametrize("name", ["ray::ServeController", "ray::DirectoryActor", "haproxy"])
async def test_streams_go_on_without_what_only_manages_them(made: Scene, name: str) -> None:
    """Over HTTP a proxy's death ends the streams that it carries; over gRPC there is none on the way."""
    clients = Clients(made.cluster.http, made.cluster.grpc, 11, http_share=0.0)
    streaming = asyncio.create_task(clients.run(CLIENTS))
    await eventually(lambda: any(stream.arrivals for stream in clients.streams))
    pid = made.process_named(name)
    os.kill(pid, signal.SIGKILL)
    before = len(clients.streams)
    await eventually(lambda: len(clients.streams) > before + 3 * CLIENTS)
    await eventually(lambda: asyncio.to_thread(_is_back, made, name, pid), BACK_S)
    clients.stop()
    await streaming
    assert {stream.error for stream in clients.streams if stream.end is not End.WHOLE} == set()
    assert await asyncio.to_thread(left_behind, made) == []


def _is_back(made: Scene, name: str, old: int) -> bool:
    """Another process has its name, and HTTP is answered."""
    try:
        if made.process_named(name) == old:
            return False
        with urllib.request.urlopen(f"{made.cluster.http}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (LookupError, OSError):
        return False


async def test_the_death_of_a_router_is_the_trouble_of_its_own_clients_alone(made: Scene) -> None:
    """Last here: Serve starts another router, which this scene does not know."""
    clients = Clients(made.cluster.http, made.cluster.grpc, 13, http_share=0.5)
    streaming = asyncio.create_task(clients.run(CLIENTS))
    await eventually(lambda: any(stream.arrivals for stream in clients.streams))
    os.kill(made.process_named("ray::ServeReplica:baton:router"), signal.SIGKILL)
    killed = time.monotonic()
    await eventually(lambda: len(clients.streams) > 12 * CLIENTS, BACK_S)
    clients.stop()
    await streaming
    late = [stream for stream in clients.streams if stream.began > killed + NOTICED_S]
    assert len(late) > 2 * CLIENTS
    assert {stream.error for stream in late if stream.end is not End.WHOLE} == set()
    assert not [stream for stream in clients.streams if stream.end in (End.WRONG, End.HUNG)]
    made.forget_dead_routers()
    assert len(made.admins) == 1
    assert await asyncio.to_thread(left_behind, made) == []
