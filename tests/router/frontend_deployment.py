"""vLLM's OpenAI server over two scripted workers, with the clients that users have: openai's SDK and gRPC."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import httpx
import openai
import uvicorn

from cluster.clock import RealClock
from cluster.config import Config, parse_config
from cluster.engine import Role
from cluster.membership import MemoryDirectory
from protos.baton.v1 import admin_pb2_grpc, inference_pb2, inference_pb2_grpc, worker_pb2
from router.replica import RouterReplica, start_replica
from tests.router.scripted_worker import LeaseBook, ScriptedWorker
from tests.router.simulated_cluster import SECRET
from tests.waiting import eventually

PLACES = 32
"""Requests that run at once."""
QUEUED_TOKENS = 450
"""Most that may wait: less than the longest request has."""

ONE_IN_50_S = {"requests_per_s": 0.02}
CHAT = [{"role": "user", "content": "Hello"}]
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": [5, 6, 7], "max_tokens": 6},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 6},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 6},
    "/v1/messages": {"messages": CHAT, "max_tokens": 6},
}
"""What each route that generates is asked for."""


@dataclass
class Deployment:
    replica: RouterReplica
    prefill: ScriptedWorker
    decode: ScriptedWorker
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI
    grpc: inference_pb2_grpc.InferenceAsyncStub
    admin: admin_pb2_grpc.AdminAsyncStub

    async def complete(self, **fields: Any) -> Any:
        asked: dict[str, Any] = {"model": "demo", "prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0.0} | fields
        return await self.openai.completions.create(**asked)

    async def chat(self, **fields: Any) -> Any:
        asked: dict[str, Any] = {"model": "demo", "messages": CHAT, "max_tokens": 6, "temperature": 0.0} | fields
        return await self.openai.chat.completions.create(**asked)

    async def generate(self, deadline_s: float = 30, **fields: Any) -> list[inference_pb2.GenerateResponse]:
        request = inference_pb2.GenerateRequest(**fields)
        return [response async for response in self.grpc.Generate(request, timeout=deadline_s)]

    async def text_of(self, token_ids: list[int]) -> str:
        answer = await self.http.post("/detokenize", json={"model": "demo", "tokens": token_ids})
        text: str = answer.json()["prompt"]
        return text


def tenant_of(path: str) -> str:
    return path.strip("/").replace("/", "-")


def config_for(model: Path) -> Config:
    limited = "plain", "calling", "choosy", *map(tenant_of, STREAMS)
    return parse_config(
        {
            "model": {"path": str(model), "max_model_len": 512},
            "placement": {"disaggregate": "always"},
            "router": {"grpc_port": 0, "max_in_flight": PLACES, "request_deadline_s": 60.0},
            "admission": {
                "tenants": dict.fromkeys(limited, ONE_IN_50_S),
                "queue": {"max_tokens": QUEUED_TOKENS},
            },
        }
    )


@asynccontextmanager
async def deployed(model: Path) -> AsyncIterator[Deployment]:
    """Both edges, linked to both workers."""
    directory, leases = MemoryDirectory(RealClock()), LeaseBook()
    prefill, decode = ScriptedWorker("p", Role.PREFILL, leases), ScriptedWorker("d", Role.DECODE, leases)
    for worker in (prefill, decode):
        await directory.announce(await worker.start(), 1000.0)
    config = config_for(model)
    with patch.dict(os.environ, {config.security.ticket_secret_env: SECRET}):
        replica = await start_replica(config, directory, RealClock())
    server = uvicorn.Server(uvicorn.Config(replica.app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while len(list(replica.fleet.dispatch.view)) < 2:
            await replica.fleet.next_change.wait()
        while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with (
        httpx.AsyncClient(base_url=url) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
        grpc.aio.insecure_channel(f"127.0.0.1:{replica.grpc_port}") as channel,
    ):
        stubs = inference_pb2_grpc.InferenceStub(channel), admin_pb2_grpc.AdminStub(channel)
        yield Deployment(replica, prefill, decode, http, sdk, *stubs)
    server.should_exit = True
    await serving
    await replica.close(grace_s=1.0)
    for worker in (prefill, decode):
        await worker.stop()


@asynccontextmanager
async def cleared(running: Deployment) -> AsyncIterator[Deployment]:
    """For one test: workers that know nothing before it, and nothing left behind after it."""
    for worker in (running.prefill, running.decode):
        worker.submits.clear()
        worker.aborted.clear()
        worker.gate.set()
        worker.refuse, worker.free_tokens = "", 0
    yield running
    for worker in (running.prefill, running.decode):
        await worker.until(lambda worker=worker: not worker.running)  # type: ignore[misc]
    await running.prefill.until(lambda: running.prefill.leases.live == set())
    running.replica.fleet.dispatch.check_integrity()
    assert running.replica.fleet.dispatch.in_flight == 0


@asynccontextmanager
async def decode_stalls(service: Deployment, choices: int, tokens_left: int) -> AsyncIterator[None]:
    """In mid-stream, after two of its tokens, when each of so many requests still lacks so many. Only the prefill
    worker is left to go on."""
    service.decode.free_tokens = 2
    service.decode.gate.clear()
    dispatch = service.replica.fleet.dispatch

    async def stall() -> None:
        await eventually(lambda: [live.pipeline.remaining for live in dispatch._live] == [tokens_left] * choices)
        service.decode.feed.enter(worker_pb2.WORKER_STATE_STALLED, "no step")

    stalling = asyncio.create_task(stall())
    try:
        yield
        await stalling
    finally:
        stalling.cancel()
        service.decode.feed.enter(worker_pb2.WORKER_STATE_READY, "")
        await eventually(lambda: len(dispatch.view.ready(Role.DECODE)) == 1)
