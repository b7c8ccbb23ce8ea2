"""The HTTP edge in front of a small application: routes, bodies, early errors and streams that break."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cluster.config import RouterConfig
from cluster.config_security import NO_TENANT
from cluster.errors import DeadlineExceeded, NoWorker, Overloaded, TenantLimited
from router.caller import Caller, current_caller
from router.http_edge import GENERATING, READING, HttpEdge
from router.session_id import current_session

CHAT = "/v1/chat/completions"
CONFIG = RouterConfig(max_body_bytes=1000, max_choices=4, max_in_flight=8)


class Backend:
    """What stands behind the edge; `respond` is what it answers to a POST."""

    def __init__(self) -> None:
        self.respond: Callable[[bytes], Response] = lambda body: Response(body, media_type="application/json")
        self.reached = 0
        self.headers: dict[str, str] = {}
        routes = [Route(path, self.post, methods=["POST"]) for path in [*GENERATING, *READING, "/scale_elastic_ep"]]
        routes += [Route(path, self.get) for path in ("/v1/models", "/metrics", "/server_info")]
        self.app = Starlette(routes=routes)

    async def post(self, request: Request) -> Response:
        self.reached += 1
        self.headers = dict(request.headers)
        return self.respond(await request.body())

    async def get(self, request: Request) -> Response:
        self.reached += 1
        return JSONResponse({"object": "list"})


class Edge:
    def __init__(self) -> None:
        self.backend = Backend()
        self.refusal: Exception | None = None
        self.ready = True
        self.callers: list[Caller] = []
        app = HttpEdge(self.backend.app, CONFIG, self.admit, lambda: self.ready)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://router")

    def admit(self, caller: Caller) -> None:
        self.callers.append(caller)
        if self.refusal is not None:
            raise self.refusal

    async def post(self, body: object, path: str = CHAT, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    yield edge
    await edge.client.aclose()


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    return error


async def test_a_good_request_reaches_the_application_with_its_body(edge: Edge) -> None:
    response = await edge.post({"model": "demo", "n": 2})
    assert (response.status_code, response.json()) == (200, {"model": "demo", "n": 2})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/scale_elastic_ep"),
        ("GET", "/metrics"),
        ("GET", "/server_info"),
        ("GET", CHAT),
        ("DELETE", "/v1/models"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/V1/chat/completions"),
    ],
)
async def test_routes_that_users_do_not_need_do_not_exist(edge: Edge, method: str, path: str) -> None:
    response = await edge.client.request(method, path)
    assert response.status_code == 404
    assert path in error_of(response)["message"]
    assert edge.backend.reached == 0


async def test_health_follows_the_fleet(edge: Edge) -> None:
    assert (await edge.client.get("/health")).status_code == 200
    edge.ready = False
    response = await edge.client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "no worker is ready"})
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"background": True}, "background"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"best_of": 99}, "best_of"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 2}, "prompt"),
    ],
)
async def test_a_field_that_cannot_work_is_named(edge: Edge, body: dict[str, Any], param: str) -> None:
    error = error_of(await edge.post(body))
    assert (error["code"], error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert edge.backend.reached == 0


@pytest.mark.parametrize(
    "body", [{"kv_transfer_params": None, "use_beam_search": False, "cache_salt": "s", "prompt": [1]}]
)
async def test_fields_that_say_nothing_or_are_allowed_pass(edge: Edge, body: dict[str, Any]) -> None:
    assert (await edge.post(body)).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"null", b"\xff\xfe", b"[" * 900])
async def test_what_is_no_json_object_is_refused(edge: Edge, content: bytes) -> None:
    response = await edge.client.post(CHAT, content=content)
    assert error_of(response)["code"] == 400
    assert edge.backend.reached == 0


async def test_an_announced_body_over_the_limit_is_refused(edge: Edge) -> None:
    response = await edge.client.post(CHAT, content=b" " * 1001)
    assert error_of(response)["code"] == 413
    assert "1000 bytes" in error_of(response)["message"]


async def test_a_chunked_body_is_refused_once_it_passes_the_limit(edge: Edge) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b" " * 100

    response = await edge.client.post(CHAT, content=endless())
    assert error_of(response)["code"] == 413
    assert sent <= 1200
    assert edge.backend.reached == 0


@pytest.mark.parametrize("refusal", [Overloaded("full"), NoWorker("nobody")])
async def test_what_cannot_be_taken_now_is_refused_with_a_time_to_come_back(edge: Edge, refusal: Exception) -> None:
    edge.refusal = refusal
    response = await edge.post({"model": "demo"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert error_of(response)["message"] == str(refusal)


@pytest.mark.parametrize(
    ("refusal", "status", "seconds"),
    [(Overloaded("full", 12.2), 503, "13"), (TenantLimited("yours", 3.0), 429, "3")],
)
async def test_a_refusal_that_knows_says_when_to_come_back(
    edge: Edge, refusal: Exception, status: int, seconds: str
) -> None:
    edge.refusal = refusal
    response = await edge.post({"model": "demo"})
    assert (response.status_code, response.headers["retry-after"]) == (status, seconds)


async def test_a_refusal_behind_the_frontend_says_when_to_come_back_too(edge: Edge) -> None:
    def refuse(body: bytes) -> Response:
        current_caller().hear(Overloaded("full", 7.0))
        current_caller().hear(Overloaded("full", 5.0))
        return JSONResponse({"error": {"message": "full"}}, 503)

    edge.backend.respond = refuse
    assert (await edge.post({"model": "demo"})).headers["retry-after"] == "7"


async def test_tenant_and_class_reach_admission_and_the_application(edge: Edge) -> None:
    seen: list[Caller] = []

    def respond(body: bytes) -> Response:
        seen.append(current_caller())
        return JSONResponse({})

    edge.backend.respond = respond
    await edge.post({}, headers={"X-Tenant-Id": "acme", "X-Priority-Class": "batch"})
    await edge.post({})
    assert [(caller.tenant, caller.priority) for caller in edge.callers] == [("acme", "batch"), (NO_TENANT, "")]
    assert seen == edge.callers


@pytest.mark.parametrize(
    "headers",
    [
        [("x-tenant-id", "a b")],
        [("x-tenant-id", "")],
        [("x-tenant-id", "a" * 65)],
        [("x-tenant-id", "a"), ("X-Tenant-Id", "b")],
        [("x-priority-class", "\x00")],
        [("x-priority-class", "../etc")],
    ],
)
async def test_a_malformed_tenant_or_class_is_answered_400(edge: Edge, headers: list[tuple[str, str]]) -> None:
    response = await edge.post({}, headers=headers)
    assert response.status_code == 400
    assert headers[0][0] in error_of(response)["message"]
    assert edge.backend.reached == 0


async def test_reading_routes_are_answered_even_when_nothing_can_be_generated(edge: Edge) -> None:
    edge.refusal = NoWorker("nobody")
    assert (await edge.post({"prompt": "a"}, path="/tokenize")).status_code == 200


async def test_headers_that_would_steer_the_engine_are_dropped(edge: Edge) -> None:
    await edge.post({}, headers={"X-Data-Parallel-Rank": "3", "X-Vllm-Priority": "-9", "X-Session-Id": "s"})
    assert "x-data-parallel-rank" not in edge.backend.headers
    assert "x-vllm-priority" not in edge.backend.headers
    assert edge.backend.headers["x-session-id"] == "s"


def streams(*events: str | Exception) -> Callable[[bytes], Response]:
    async def produce() -> AsyncIterator[str]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield f"data: {event}\n\n"

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


async def test_an_unforeseen_failure_is_answered_without_its_details(edge: Edge) -> None:
    def broken(body: bytes) -> Response:
        raise RuntimeError("secret path /etc/x")

    edge.backend.respond = broken
    response = await edge.post({})
    assert response.status_code == 500
    assert "secret" not in response.text


async def test_a_session_named_in_the_header_is_known_to_what_serves_the_request(edge: Edge) -> None:
    edge.backend.respond = lambda body: Response(current_session())
    assert (await edge.post({}, headers={"X-Session-Id": "talk-7"})).text == "talk-7"
    assert (await edge.post({})).text == ""


@pytest.mark.parametrize("name", ["x" * 257, "caf\u00e9", "a\tb"])
async def test_a_session_name_that_is_no_name_is_refused(edge: Edge, name: str) -> None:
    answer = await edge.post({}, headers={"x-session-id": name.encode("latin-1")})
    assert answer.status_code == 400
    assert "x-session-id" in error_of(answer)["message"]
    assert edge.backend.reached == 0
