"""How the HTTP edge answers when something is wrong, and what becomes of streams that are refused or break."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.responses import Response, StreamingResponse

from cluster.errors import BatonError, DeadlineExceeded, Overloaded, TenantLimited
from router.caller import current_caller
from tests.router.edge_bench import CHAT, Edge, error_of


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    yield edge
    await edge.client.aclose()


def streams(*events: str | Exception, tokens: bool = True) -> Callable[[bytes], Response]:
    """`tokens`: the first event has one. A `BatonError` is heard before it is raised, as the fleet's errors are."""

    async def produce() -> AsyncIterator[str]:
        for event in events:
            if isinstance(event, BatonError):
                current_caller().hear(event)
            if isinstance(event, Exception):
                raise event
            if tokens:
                current_caller().first_token = 1.0
            yield event if event.startswith((":", "event:")) else f"data: {event}\n\n"

    return lambda body: StreamingResponse(produce(), media_type="text/event-stream")


async def test_a_stream_that_begins_with_an_error_gets_that_errors_status(edge: Edge) -> None:
    error = {"error": {"message": "bad token", "type": "BadRequestError", "param": "stop", "code": 400}}
    edge.backend.respond = streams(json.dumps(error), "[DONE]")
    response = await edge.post({"stream": True})
    assert (response.status_code, response.json()) == (400, error)
    assert response.headers["content-type"] == "application/json"


async def test_a_stream_that_works_passes_untouched(edge: Edge) -> None:
    edge.backend.respond = streams('{"a": 1}', "[DONE]")
    response = await edge.post({"stream": True})
    assert response.text == 'data: {"a": 1}\n\ndata: [DONE]\n\n'


async def test_a_stream_that_breaks_ends_with_an_error_event(edge: Edge) -> None:
    edge.backend.respond = streams('{"a": 1}', DeadlineExceeded("too slow"))
    response = await edge.post({"stream": True})
    events = response.text.split("\n\n")
    assert events[0] == 'data: {"a": 1}'
    assert json.loads(events[1].removeprefix("data: "))["error"]["message"] == "too slow"
    assert events[2] == "data: [DONE]"


CREATED = 'event: response.created\ndata: {"type": "response.created"}\n\n'
UNREADABLE = 'event: error\ndata: {"type": "error", "error": {"message": "4 validation errors"}}\n\n'
TOO_MANY = json.dumps({"error": {"message": "yours", "type": "Too Many Requests", "param": None, "code": 429}})


def hearing(refusal: BatonError, respond: Callable[[bytes], Response]) -> Callable[[bytes], Response]:
    def heard(body: bytes) -> Response:
        current_caller().hear(refusal)
        return respond(body)

    return heard


@pytest.mark.parametrize(
    ("path", "made_of_it"),
    [
        (CHAT, streams(TOO_MANY, "[DONE]", tokens=False)),
        ("/v1/completions", streams(TOO_MANY, "[DONE]", tokens=False)),
        ("/v1/responses", streams(CREATED, CREATED, RuntimeError("began already"), tokens=False)),
        ("/v1/messages", streams(UNREADABLE, tokens=False)),
        ("/v1/messages", lambda body: Response(TOO_MANY, 429)),
    ],
)
async def test_a_refusal_is_told_the_same_way_whatever_the_frontend_makes_of_it(
    edge: Edge, path: str, made_of_it: Callable[[bytes], Response]
) -> None:
    edge.backend.respond = hearing(TenantLimited("yours", 3.2), made_of_it)
    response = await edge.post({"stream": True}, path=path)
    assert (response.status_code, response.headers["retry-after"]) == (429, "4")
    assert response.headers["content-type"] == "application/json"
    error = error_of(response)
    assert (error["message"], error["type"]) == ("yours", "rate_limit_error")


async def test_a_stream_whose_refusal_comes_after_its_first_events_is_no_stream(edge: Edge) -> None:
    edge.backend.respond = streams(CREATED, Overloaded("full", 7.0), tokens=False)
    response = await edge.post({"stream": True}, path="/v1/responses")
    assert (response.status_code, response.headers["retry-after"], error_of(response)["message"]) == (503, "7", "full")


async def test_a_stream_that_breaks_later_keeps_the_words_of_its_error(edge: Edge) -> None:
    async def produce() -> AsyncIterator[str]:
        current_caller().first_token = 1.0
        yield "data: {}\n\n"
        current_caller().hear(DeadlineExceeded("too slow"))
        yield UNREADABLE

    edge.backend.respond = lambda body: StreamingResponse(produce(), media_type="text/event-stream")
    first, broken, _ = (await edge.post({"stream": True}, path="/v1/messages")).text.split("\n\n")
    name, data = broken.split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (first, name, told["type"]) == ("data: {}", "event: error", "error")
    assert (told["error"]["message"], told["error"]["type"]) == ("too slow", "timeout_error")


async def test_a_stream_that_ends_without_a_token_passes_in_full(edge: Edge) -> None:
    edge.backend.respond = streams("{}", "[DONE]", tokens=False)
    response = await edge.post({"stream": True})
    assert (response.status_code, response.text) == (200, "data: {}\n\ndata: [DONE]\n\n")


async def test_a_comment_that_keeps_a_waiting_stream_alive_is_not_held_back(edge: Edge) -> None:
    edge.backend.respond = streams(": keep-alive\n\n", Overloaded("full"), tokens=False)
    response = await edge.post({"stream": True})
    assert response.status_code == 200
    assert response.text.startswith(": keep-alive\n\ndata: ")
