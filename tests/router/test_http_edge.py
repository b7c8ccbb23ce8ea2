"""The HTTP edge in front of a small application: routes, bodies and early errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from cluster.config_security import NO_TENANT
from cluster.errors import NoWorker, Overloaded, TenantLimited
from router.caller import Caller, current_caller
from router.session_id import current_session
from tests.router.edge_bench import CHAT, Edge, error_of


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    yield edge
    await edge.client.aclose()


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
        ({"n": "2"}, "n"),
        ({"n": 2.0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"prompt": ["a"] * 5, "n": "2"}, "n"),
        ({"priority": -1}, "priority"),
        ({"request_id": "x" * 257}, "request_id"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"request_id": 7}, "request_id"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 2}, "prompt"),
    ],
)
async def test_a_field_that_cannot_work_is_named(edge: Edge, body: dict[str, Any], param: str) -> None:
    error = error_of(await edge.post(body))
    assert (error["code"], error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert edge.backend.reached == 0


@pytest.mark.parametrize(
    "body",
    [
        {
            "kv_transfer_params": None,
            "use_beam_search": False,
            "cache_salt": "s",
            "priority": 0,
            "prompt": [1],
            "request_id": "x" * 256,
        }
    ],
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


async def test_a_caller_that_cannot_be_taken_is_refused_before_its_body_is_read(edge: Edge) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    edge.refusal = Overloaded("full")
    assert (await edge.client.post(CHAT, content=body())).status_code == 503
    assert read == 0


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


@pytest.mark.parametrize("header", ["x-session-id", "x-request-id"])
@pytest.mark.parametrize("name", ["x" * 257, "caf\u00e9", "a\tb"])
async def test_a_name_of_a_session_or_request_that_is_none_is_refused(edge: Edge, header: str, name: str) -> None:
    answer = await edge.post({}, headers={header: name.encode("latin-1")})
    assert answer.status_code == 400
    assert header in error_of(answer)["message"]
    assert edge.backend.reached == 0
