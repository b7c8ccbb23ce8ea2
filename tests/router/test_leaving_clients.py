"""Clients that leave or stop reading, over HTTP and the real frontend: their attempts end on the workers within a few
engine steps."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn

from cluster.clock import RealClock
from cluster.config import parse_config
from cluster.engine import EngineOutput, Role
from router.replica import RouterReplica, start_replica
from tests.router.simulated_cluster import SECRET, SimulatedCluster
from tests.waiting import eventually

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),  # vLLM's imports warn
    pytest.mark.timeout(120),
]

STEP_S = 0.005
FEW_STEPS = 40
"""From the end of the connection to the end of the attempt: the way through server, frontend, router and worker."""
PATIENCE_S = 0.5


@dataclass
class Stage:
    replica: RouterReplica
    cluster: SimulatedCluster
    server: uvicorn.Server
    port: int
    steps: int = 0

    def held_up(self) -> bool:
        """Whether a client has not read so much that the server sends no more."""
        return any(connection.flow.write_paused for connection in self.server.server_state.connections)  # type: ignore[union-attr]

    def at_rest(self) -> bool:
        workers = self.cluster.workers.values()
        return all(not running.worker.attempts and running.idle for running in workers)

    def attempts(self) -> int:
        return sum(len(running.worker.attempts) for running in self.cluster.workers.values())

    def count_steps(self) -> None:
        """Of the decode engine, from now on."""
        engine = self.cluster.workers["d1"].engine
        step = type(engine).step
        self.steps = 0

        async def counted() -> list[EngineOutput]:
            outputs = await step(engine)
            self.steps += 1
            return outputs

        engine.step = counted  # type: ignore[method-assign]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(demo_model: Path) -> AsyncIterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATON_TICKET_SECRET", SECRET)
        config = parse_config(
            {
                "model": {"path": str(demo_model), "max_model_len": 4096},
                "engine": {
                    "kind": "simulated",
                    "block_size": 16,
                    "simulated": {"step_s": STEP_S, "vocabulary": 2_000},
                },
                "router": {"grpc_port": 0, "client_deadline_s": PATIENCE_S},
                "placement": {"disaggregate": "always"},
            }
        )
        cluster = SimulatedCluster(config)
        await cluster.add("p1", Role.PREFILL)
        await cluster.add("d1", Role.DECODE)
        replica = await start_replica(config, cluster.directory, RealClock())
        async with served(replica) as (server, port):
            await eventually(lambda: len(list(replica.fleet.dispatch.view)) == 2)
            stage = Stage(replica, cluster, server, port)
            stage.count_steps()
            yield stage
        await replica.close(grace_s=1.0)
        await cluster.close()


@asynccontextmanager
async def served(replica: RouterReplica) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its connections have the same
    server = uvicorn.Server(uvicorn.Config(replica.app, log_level="critical"))
    serving = asyncio.create_task(server.serve([listener]))
    await eventually(lambda: server.started, within_s=30)
    yield server, listener.getsockname()[1]
    await eventually(lambda: not server.server_state.connections)
    server.should_exit = True
    await serving


@pytest_asyncio.fixture(loop_scope="module")
async def stage(running: Stage) -> AsyncIterator[Stage]:
    yield running
    await eventually(running.at_rest)
    assert running.replica.fleet.dispatch.in_flight == 0
    running.replica.fleet.dispatch.check_integrity()
    running.cluster.check_integrity()


def connect(stage: Stage, **fields: object) -> socket.socket:
    """With small buffers, so that what is not read comes back soon."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", stage.port))
    asked = {"model": "demo", "prompt": [5] * 40, "max_tokens": 3_500, "stream": True, "ignore_eos": True} | fields
    body = json.dumps(asked).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: router", "Content-Type: application/json")
    client.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    client.setblocking(False)
    return client


async def read_some(client: socket.socket, least: int) -> None:
    loop, got = asyncio.get_running_loop(), 0
    async with asyncio.timeout(20):
        while got < least:
            got += len(await loop.sock_recv(client, 4096))


async def test_a_client_that_hangs_up_ends_its_attempt_within_a_few_steps(stage: Stage) -> None:
    client = connect(stage)
    await read_some(client, 2_000)
    assert stage.attempts() == 1
    before = stage.steps
    client.close()
    await eventually(stage.at_rest)
    assert stage.steps - before < FEW_STEPS


async def test_every_choice_of_a_client_that_hangs_up_ends(stage: Stage) -> None:
    client = connect(stage, n=4, temperature=1.0)
    await read_some(client, 4_000)
    assert stage.attempts() == 4
    client.close()
    await eventually(stage.at_rest)


async def test_a_client_that_does_not_read_loses_its_request(stage: Stage) -> None:
    client = connect(stage, n=4, temperature=1.0)
    await read_some(client, 1_000)
    await eventually(lambda: stage.attempts() == 4)
    await eventually(stage.held_up)
    await eventually(stage.at_rest)
    assert stage.cluster.workers["d1"].worker.attempts.outcomes["abort"] > 0
    assert stage.replica.fleet.dispatch.counters().requests_by_outcome["cancelled"] > 0
    client.close()


async def test_a_client_that_does_not_read_and_then_hangs_up_ends_its_attempt_at_once(stage: Stage) -> None:
    """It is cut off while it is sent to, where the frontend by itself notices nothing."""
    stage.replica.app._config = stage.replica.app._config.model_copy(update={"client_deadline_s": 60.0})  # type: ignore[attr-defined]
    client = connect(stage, n=4, temperature=1.0)
    await read_some(client, 1_000)
    await eventually(stage.held_up)
    assert stage.attempts() == 4
    before = stage.steps
    client.close()
    await eventually(stage.at_rest)
    assert stage.steps - before < FEW_STEPS
