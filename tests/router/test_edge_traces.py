"""What both edges do for operators: the page of metrics, and traces that go in and out with every call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cluster.config import RouterConfig
from cluster.errors import Overloaded
from cluster.tracing import Sampling, Span
from protos.baton.v1 import inference_pb2, inference_pb2_grpc
from router.caller import Caller, current_caller
from router.edge_watch import EdgeWatch, Tracing
from router.grpc_edge import GrpcEdge
from router.http_edge import HttpEdge
from router.text_generation import TextChunk, TextDelta
from tests.router.test_grpc_edge import NoAdmin, Script

CHAT = "/v1/chat/completions"
TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CLIENT_SPAN}-01"


@dataclass
class Watched:
    """An edge's watch, and all that it was told."""

    spans: list[Span] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)

    def send(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def watch(self) -> EdgeWatch:
        return EdgeWatch(Tracing(Sampling(0.0, lambda: 1.0), self), self.first_bytes.append, lambda: 10.0)


Answer = Callable[[], Response]


@dataclass
class Edge:
    watched: Watched
    client: httpx.AsyncClient
    answer: Answer = lambda: JSONResponse({})
    refusal: Exception | None = None

    async def respond(self, request: Request) -> Response:
        return self.answer()

    def admit(self, caller: Caller) -> None:
        if self.refusal is not None:
            raise self.refusal


def made(page: Callable[[], Awaitable[bytes]] | None = None, watch: EdgeWatch | None = None) -> Edge:
    edge = Edge(Watched(), httpx.AsyncClient())
    app = Starlette(routes=[Route(CHAT, edge.respond, methods=["POST"])])
    served = HttpEdge(app, RouterConfig(), edge.admit, lambda: True, page=page, watch=watch or edge.watched.watch())
    edge.client = httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://router")
    return edge


async def page() -> bytes:
    return b"baton_drains 0.0\n"


async def test_the_page_is_text_that_prometheus_takes() -> None:
    answer = await made(page).client.get("/metrics")
    assert (answer.status_code, answer.content) == (200, b"baton_drains 0.0\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "traceparent" not in answer.headers


async def test_where_there_is_no_page_there_is_no_route() -> None:
    assert (await made().client.get("/metrics")).status_code == 404


async def test_an_answer_names_the_span_of_its_call() -> None:
    edge = made()
    answer = await edge.client.post(CHAT, json={}, headers={"traceparent": TRACEPARENT})
    (span,) = edge.watched.spans
    assert answer.headers["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
    assert (span.name, span.parent_id, span.failed, span.entry) == (f"POST {CHAT}", CLIENT_SPAN, "", True)
    assert span.attributes["baton.status"] == "200"


async def test_a_refusal_is_traced_too_and_is_no_failure_of_ours_unless_it_is() -> None:
    edge = made()
    edge.refusal = Overloaded("full")
    answer = await edge.client.post(CHAT, json={}, headers={"traceparent": TRACEPARENT})
    assert answer.status_code == 503
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert edge.watched.spans[0].failed == "status 503"
    edge.answer, edge.refusal = (lambda: JSONResponse({}, 400)), None
    await edge.client.post(CHAT, json={}, headers={"traceparent": TRACEPARENT})
    assert edge.watched.spans[1].failed == ""


async def test_without_a_collector_nothing_is_added_to_an_answer() -> None:
    answer = await made(watch=EdgeWatch()).client.post(CHAT, json={}, headers={"traceparent": TRACEPARENT})
    assert "traceparent" not in answer.headers


@pytest.mark.parametrize(("media", "told"), [("text/event-stream", [2.0]), ("application/json", [])])
async def test_the_first_part_of_a_stream_is_timed_once_and_a_whole_answer_never(media: str, told: list[float]) -> None:
    edge = made()

    def answer() -> Response:
        caller = current_caller()

        async def parts() -> AsyncIterator[bytes]:
            caller.first_token = 8.0
            for _ in range(3):
                yield b"data: x\n\n"

        return StreamingResponse(parts(), media_type=media)

    edge.answer = answer
    await edge.client.post(CHAT, json={})
    assert edge.watched.first_bytes == told


async def test_a_call_over_grpc_takes_its_trace_from_metadata_and_names_its_span_in_it() -> None:
    watched, script = Watched(), Script()
    script.chunks = [TextChunk((TextDelta(0, "he", (7,)),))]
    edge = GrpcEdge(RouterConfig(grpc_port=0), script, NoAdmin(), watch=watched.watch())
    port = await edge.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            asked = inference_pb2.GenerateRequest(text="hi")
            call = stub.Generate(asked, metadata=(("traceparent", TRACEPARENT),))
            assert len([response async for response in call]) == 1
            given = dict(await call.initial_metadata())
            assert "traceparent" in given
            silent = stub.Generate(asked)
            assert len([response async for response in silent]) == 1
    finally:
        await edge.close(0)
    (span,) = watched.spans  # the second call was not sampled
    assert given["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
    assert (span.name, span.parent_id, span.failed) == ("Generate", CLIENT_SPAN, "")


async def test_a_call_over_grpc_that_is_refused_says_why_in_its_span() -> None:
    watched, script = Watched(), Script()
    edge = GrpcEdge(RouterConfig(grpc_port=0), script, NoAdmin(), watch=watched.watch())
    port = await edge.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            script.error = Overloaded("full")
            with pytest.raises(grpc.aio.AioRpcError, match="full"):
                async for _ in stub.Generate(
                    inference_pb2.GenerateRequest(text="hi"), metadata=(("traceparent", TRACEPARENT),)
                ):
                    pass
    finally:
        await edge.close(0)
    assert [span.failed for span in watched.spans] == ["full"]
