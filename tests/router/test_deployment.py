"""The router as users meet it: a Ray Serve application behind HAProxy, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from deploy.free_port import free_port
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.json_lines import next_object

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

START_S = 180.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Application:
    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    channel: grpc.aio.Channel

    async def seen(self, aborts: int = 0) -> dict[str, Any]:
        """What the workers have seen, once that many attempts were aborted at decode."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % aborts)
        async with asyncio.timeout(20):
            return await next_object(self.process)

    async def status(self) -> admin_pb2.StatusResponse:
        return await admin_pb2_grpc.AdminStub(self.channel).Status(admin_pb2.StatusRequest(), timeout=30)

    async def outcomes(self) -> Counter[str]:
        """Of all requests so far."""
        return Counter((await self.status()).router.requests_by_outcome)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def application(demo_model: Path) -> AsyncIterator[Application]:
    http_port, grpc_port = free_port(), free_port()
    arguments = ["-m", "tests.router.serve_application", str(demo_model), str(http_port), str(grpc_port)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe, cwd=ROOT)
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=30) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        application = Application(process, http, channel)
        try:
            async with asyncio.timeout(START_S):
                assert await next_object(application.process) == {"ready": True}
                while not await serves(http):  # noqa: ASYNC110  # another process: nobody to wake us
                    await asyncio.sleep(0.2)
            yield application
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(60):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


async def serves(http: httpx.AsyncClient) -> bool:
    """HAProxy answers by itself until it has heard of the router."""
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


def chat(max_tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": "Hello"}
    return {"model": "demo", "messages": [message], "max_completion_tokens": max_tokens, "stream": True}


def generate(application: Application) -> AsyncIterable[inference_pb2.GenerateResponse]:
    sampling = inference_pb2.SamplingParameters(max_tokens=5)
    request = inference_pb2.GenerateRequest(text="hi", sampling=sampling)
    return inference_pb2_grpc.InferenceStub(application.channel).Generate(request, timeout=30)


async def test_a_chat_streams_through_haproxy(application: Application) -> None:
    async with application.http.stream("POST", "/v1/chat/completions", json=chat(8)) as response:
        events = [line async for line in response.aiter_lines() if line]
    assert response.status_code == 200
    assert len(events) == 1 + 8 + 1  # the role, the tokens, the end
    assert events[-1] == "data: [DONE]"


async def test_grpc_generates_beside_it(application: Application) -> None:
    responses = [response async for response in generate(application)]
    assert responses[-1].usage.completion_tokens == 5


async def test_a_client_that_hangs_up_aborts_its_request_at_the_worker(application: Application) -> None:
    before = (await application.seen())["aborted"][1]
    async with application.http.stream("POST", "/v1/chat/completions", json=chat(400)) as response:
        await anext(response.aiter_lines())
    seen = await application.seen(aborts=before + 1)
    assert seen["live_leases"] == 0
    assert (await application.outcomes())["cancelled"] == 1


async def test_clients_that_hang_up_as_tokens_reach_them_are_all_noticed(application: Application) -> None:
    """With splicing HAProxy missed one in a hundred; see deploy/haproxy.py."""
    aborted = (await application.seen())["aborted"][1]
    for hung_up in range(1, 201):
        async with application.http.stream("POST", "/v1/chat/completions", json=chat(400)) as response:
            await anext(response.aiter_lines())
        assert (await application.seen(aborts=aborted + hung_up))["aborted"][1] == aborted + hung_up


async def test_a_refusal_keeps_its_status_and_words_behind_haproxy(application: Application) -> None:
    response = await application.http.post("/v1/completions", json={"model": "demo", "prompt": "a", "max_tokens": 0})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


async def test_the_operator_sees_workers_and_counters(application: Application) -> None:
    before = await application.outcomes()
    responses = [response async for response in generate(application)]
    assert responses[-1].usage.completion_tokens == 5
    status = await application.status()
    assert sorted(worker.description.worker_id for worker in status.workers) == ["d", "p"]
    assert status.router.in_flight == 0
    assert await application.outcomes() - before == {"completed": 1}
