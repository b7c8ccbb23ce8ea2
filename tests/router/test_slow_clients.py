"""Clients that neither read nor send: what waits for them is bounded, and so is the time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from cluster.config import RouterConfig
from cluster.errors import ClientLost
from protos.baton.v1 import inference_pb2, inference_pb2_grpc
from router.caller import Caller, current_caller
from router.grpc_edge import GrpcEdge
from router.http_edge import HttpEdge
from router.text_generation import Prompt, TextChunk, TextDelta, TextSampling
from tests.router.test_grpc_edge import NoAdmin, Script
from tests.waiting import eventually

PATIENCE_S = 3.0  # above what a busy machine makes the loop stand still
CONFIG = RouterConfig(grpc_port=0, client_deadline_s=PATIENCE_S)
CHUNK = 16 * 1024
MOST_BUFFERED = 8 * 1024 * 1024  # both sockets' buffers on loopback, and the server's own


class Backend:
    """Streams as fast as it is read, for ever."""

    def __init__(self) -> None:
        self.made = 0
        self.left = asyncio.Event()
        self.causes: list[str] = []
        self.app = Starlette(routes=[Route("/v1/completions", self.post, methods=["POST"])])

    async def post(self, request: Request) -> Response:
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncGenerator[bytes, None]:
        current_caller().first_token = 1.0
        while True:
            self.made += CHUNK
            yield b"data: " + b"x" * (CHUNK - 8) + b"\n\n"
            await asyncio.sleep(0)

    def leave(self, caller: Caller, cause: ClientLost) -> None:
        self.causes.append(f"{caller.tenant}: {cause}")
        self.left.set()


@asynccontextmanager
async def served(backend: Backend, config: RouterConfig = CONFIG) -> AsyncIterator[int]:
    """The port of the edge in front of it."""
    edge = HttpEdge(backend.app, config, lambda caller: None, lambda: True, backend.leave)
    server = uvicorn.Server(uvicorn.Config(edge, port=0, log_level="critical", timeout_graceful_shutdown=0))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    await eventually(lambda: not server.server_state.connections)
    server.should_exit = True
    await serving


def asking(body: bytes, announced: int) -> bytes:
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: router",
        "x-tenant-id: acme",
        f"Content-Length: {announced}",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + body


async def test_a_client_that_stops_reading_over_http_loses_its_request() -> None:
    backend, body = Backend(), json.dumps({"model": "demo", "prompt": [1], "stream": True}).encode()
    async with served(backend) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(asking(body, len(body)))
            started = asyncio.get_running_loop().time()
            await asyncio.wait_for(backend.left.wait(), 20)
            assert asyncio.get_running_loop().time() - started >= PATIENCE_S
            assert backend.causes == ["acme: the client has not read for 3 s"]
            assert backend.made < MOST_BUFFERED
            client.settimeout(0)
            assert b"[DONE]" not in await read_all(client)


async def read_all(client: socket.socket) -> bytes:
    """Until the other end closes or resets."""
    loop, parts = asyncio.get_running_loop(), []
    async with asyncio.timeout(10):
        while part := await _some(loop, client):
            parts.append(part)
    return b"".join(parts)


async def _some(loop: asyncio.AbstractEventLoop, client: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(client, 1 << 20)
    except ConnectionResetError:
        return b""


async def test_a_client_that_reads_slowly_but_reads_keeps_its_request() -> None:
    backend, body = Backend(), json.dumps({"model": "demo", "prompt": [1], "stream": True}).encode()
    patience_s = 2 * PATIENCE_S
    async with served(backend, RouterConfig(grpc_port=0, client_deadline_s=patience_s)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking(body, len(body)))
        loop = asyncio.get_running_loop()
        end, read = loop.time() + 1.5 * patience_s, 0
        while loop.time() < end:
            read += len(await reader.read(1 << 18))
            await asyncio.sleep(PATIENCE_S / 10)
        assert not backend.left.is_set()
        assert read > CHUNK
        writer.close()
        await asyncio.wait_for(backend.left.wait(), 10)
        assert backend.causes == ["acme: the client left"]


async def test_a_body_that_does_not_come_is_answered_for() -> None:
    backend = Backend()
    async with served(backend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking(b'{"model":', 1000))
        status = await asyncio.wait_for(reader.readline(), 10)
        assert b" 408 " in status
        assert b"the body did not come within 3 s" in await asyncio.wait_for(reader.read(4096), 10)
        writer.close()
    assert (backend.made, backend.causes) == (0, [])


async def test_a_body_that_comes_a_byte_at_a_time_is_not_waited_for_longer() -> None:
    backend = Backend()
    async with served(backend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking(b"", 1000))
        answer = asyncio.create_task(reader.readline())
        async with asyncio.timeout(10):
            while not answer.done():
                writer.write(b" ")
                await asyncio.wait({answer}, timeout=PATIENCE_S / 10)
        assert b" 408 " in answer.result()
        writer.close()
    assert backend.made == 0


async def test_a_client_that_leaves_in_mid_body_is_no_bad_request() -> None:
    backend = Backend()
    edge = HttpEdge(backend.app, CONFIG, lambda caller: None, lambda: True, backend.leave)
    messages: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await edge(scope, receive, send)
    assert sent[0]["status"] == 408
    assert b"the client left before its body was read" in sent[1]["body"]


class Endless(Script):
    """A generator that never waits by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    async def generate(
        self, model: str, prompt: Prompt, sampling: TextSampling, request_id: str
    ) -> AsyncGenerator[TextChunk, None]:
        try:
            while True:
                self.made += CHUNK
                yield TextChunk((TextDelta(0, "x" * CHUNK, (1,)),))
        finally:
            self.left.set()


async def read_to_the_end(call: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
    async for _ in call:
        pass


async def test_a_client_that_stops_reading_over_grpc_loses_its_request_and_hears_why() -> None:
    script = Endless()
    left: list[str] = []
    edge = GrpcEdge(CONFIG, script, NoAdmin(), leave=lambda caller, cause: left.append(caller.tenant))
    port = await edge.start()
    options: list[tuple[str, Any]] = [("grpc.http2.lookahead_bytes", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(inference_pb2.GenerateRequest(text="hi"))
        await anext(aiter(call))
        await asyncio.wait_for(script.left.wait(), 20)
        assert script.made < MOST_BUFFERED
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(read_to_the_end(call), 10)
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "has not read for 3 s" in (ended.value.details() or "")
    assert left == ["anonymous"]
    await edge.close(0)
