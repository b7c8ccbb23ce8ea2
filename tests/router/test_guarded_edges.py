"""Both edges with keys: every method and route that exists is refused to whom it is not for. The lists are made from
the descriptors and from the application, so that a new one is here by itself."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import grpc
import httpx
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from cluster.config import RouterConfig
from cluster.key_ring import KeyRing
from protos.baton.v1 import admin_pb2, inference_pb2, inference_pb2_grpc
from router.caller import Caller
from router.defence import Defence
from router.grpc_edge import GrpcEdge
from router.guard import GRPC_ACCESS, HTTP_ACCESS, Access, Guard
from router.http_edge import GENERATING, METRICS, ROUTES, HttpEdge
from tests.keys import Made, made
from tests.router.test_grpc_edge import NoAdmin, Script

_Stream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[Any, Any]"

USER, VIEW, OPERATE, REVOKED = made(tenant="acme"), made(role="view"), made(role="operate"), made(tenant="acme")
SERVICES: list[ServiceDescriptor] = [
    *inference_pb2.DESCRIPTOR.services_by_name.values(),
    *admin_pb2.DESCRIPTOR.services_by_name.values(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
HOLDERS = {
    Access.USER: {USER},
    Access.VIEW: {VIEW, OPERATE},
    Access.OPERATE: {OPERATE},
    Access.ANY: {USER, VIEW, OPERATE},
}
GUARDED = [path for path in METHODS if GRPC_ACCESS.get(path) is not Access.OPEN]


def ring(*keys: Made) -> KeyRing:
    return KeyRing(key.entry for key in keys)


class Backend(NoAdmin):
    """Answers every call of Admin, so that who gets through is seen."""

    def __getattribute__(self, name: str) -> Any:
        method = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name.get(name)
        return functools.partial(_answered, method) if method else super().__getattribute__(name)


async def _answered(method: MethodDescriptor, request: object, context: object) -> Any:
    return GetMessageClass(method.output_type)()


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    guard = Guard(lambda: ring(USER, VIEW, OPERATE))
    edge = GrpcEdge(RouterConfig(grpc_port=0), Script(), Backend(), defence=Defence(guard))
    port = await edge.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await edge.close(0)


async def call(channel: grpc.aio.Channel, path: str, key: Made | None) -> grpc.StatusCode:
    """How a call ends that sends one empty message, where its client sends any."""
    message = GetMessageClass(METHODS[path].input_type)().SerializeToString()
    metadata = [] if key is None else [("authorization", key.bearer)]
    stream: _Stream = channel.stream_stream(path, request_serializer=lambda message: message)
    answers = stream(_once(message), metadata=metadata, timeout=10)
    try:
        async for _ in answers:
            break
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        answers.cancel()
    return grpc.StatusCode.OK


async def _once(message: Any) -> AsyncIterator[Any]:
    yield message


def test_every_method_that_is_served_declares_what_it_takes() -> None:
    assert set(GRPC_ACCESS) == set(METHODS)


def test_operators_methods_take_an_operator() -> None:
    admin = {path: access for path, access in GRPC_ACCESS.items() if "/baton.v1.Admin/" in path}
    assert set(admin.values()) <= {Access.VIEW, Access.OPERATE}


@pytest.mark.parametrize("path", GUARDED)
async def test_a_call_without_a_key_is_refused(channel: grpc.aio.Channel, path: str) -> None:
    assert await call(channel, path, None) is grpc.StatusCode.UNAUTHENTICATED
    assert await call(channel, path, REVOKED) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("path", GUARDED)
async def test_a_call_is_for_whom_it_is_declared_and_for_nobody_else(channel: grpc.aio.Channel, path: str) -> None:
    for key in (USER, VIEW, OPERATE):
        code = await call(channel, path, key)
        if key in HOLDERS[GRPC_ACCESS[path]]:
            assert code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        else:
            assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_method_that_nobody_declared_is_nobodys(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = {path: access for path, access in GRPC_ACCESS.items() if not path.endswith("/Status")}
    monkeypatch.setattr("router.grpc_guard.GRPC_ACCESS", rest)
    for key in (USER, VIEW, OPERATE):
        assert await call(channel, "/baton.v1.Admin/Status", key) is grpc.StatusCode.PERMISSION_DENIED
    assert await call(channel, "/baton.v1.Admin/Status", None) is grpc.StatusCode.UNAUTHENTICATED


async def test_no_service_is_served_that_is_not_looked_at_here(channel: grpc.aio.Channel) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection.ServerReflectionInfo(_once(asked), metadata=[("authorization", VIEW.bearer)], timeout=10)
    async for answer in call:
        assert {each.name for each in answer.list_services_response.service} == {each.full_name for each in SERVICES}
        return
    raise AssertionError("no answer")


async def test_a_refused_stream_need_not_be_written_to(channel: grpc.aio.Channel) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    stream: _Stream = channel.stream_stream(path)
    silent = stream(timeout=10)
    assert await silent.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_key_of_one_tenant_does_not_serve_another(channel: grpc.aio.Channel) -> None:
    metadata = [("authorization", USER.bearer), ("x-tenant-id", "other")]
    generate = inference_pb2_grpc.InferenceStub(channel).Generate
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [_ async for _ in generate(inference_pb2.GenerateRequest(text="hi"), metadata=metadata, timeout=10)]
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "of tenant acme" in (caught.value.details() or "")


# HTTP


class Edge:
    def __init__(self) -> None:
        self.keys = [USER.entry, VIEW.entry, OPERATE.entry]
        self.reached: list[str] = []
        self.tenants: list[str] = []
        self.headers: dict[str, str] = {}
        app = Starlette()
        app.add_route("/{path:path}", self.answer, methods=["GET", "POST"])
        guard = Guard(lambda: KeyRing(self.keys))
        edge = HttpEdge(app, RouterConfig(), self.admit, lambda: True, guard=guard)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://router")

    def admit(self, caller: Caller) -> None:
        self.tenants.append(caller.tenant)

    async def answer(self, request: Any) -> JSONResponse:
        self.reached.append(request.url.path)
        self.headers = dict(request.headers)
        return JSONResponse({})

    async def ask(self, method: str, path: str, key: Made | None, **headers: str) -> httpx.Response:
        shown = {} if key is None else {"authorization": key.bearer}
        body = b"{}" if method == "POST" else None
        return await self.client.request(method, path, headers=shown | headers, content=body)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    async with edge.client:
        yield edge


def _routes() -> Iterator[tuple[str, str]]:
    for method, paths in ROUTES.items():
        yield from ((method, path) for path in sorted(paths))
    yield from (("GET", path) for path in sorted(HTTP_ACCESS) if HTTP_ACCESS[path] is not Access.OPEN)
    yield from (("GET", path) for path in ("/", "/docs", "/server_info", "/health/", "/metrics/", "/-/healthz"))
    yield from (("OPTIONS", "/v1/models"), ("DELETE", "/v1/models"), ("POST", "/scale_elastic_ep"))


@pytest.mark.parametrize(("method", "path"), list(_routes()))
async def test_a_request_without_a_key_is_refused(edge: Edge, method: str, path: str) -> None:
    for key in (None, REVOKED):
        response = await edge.ask(method, path, key)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"] == {
            "message": response.json()["error"]["message"],
            "type": "authentication_error",
            "param": None,
            "code": 401,
        }
    assert edge.reached == []


_USERS = [route for route in _routes() if route[1] in ROUTES.get(route[0], ()) and route[1] != METRICS]


@pytest.mark.parametrize(("method", "path"), _USERS)
async def test_a_users_route_is_for_users(edge: Edge, method: str, path: str) -> None:
    assert (await edge.ask(method, path, USER)).status_code == 200
    for key in (VIEW, OPERATE):
        response = await edge.ask(method, path, key)
        assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
    assert edge.reached == [path]


async def test_metrics_are_for_operators(edge: Edge) -> None:
    assert (await edge.ask("GET", "/metrics", USER)).status_code == 403
    assert (await edge.ask("GET", "/metrics", VIEW)).status_code != 403


async def test_health_is_for_everyone(edge: Edge) -> None:
    assert (await edge.ask("GET", "/health", None)).status_code == 200
    assert (await edge.ask("HEAD", "/health", None)).status_code == 200


@pytest.mark.parametrize("path", sorted(GENERATING))
async def test_the_tenant_is_the_keys(edge: Edge, path: str) -> None:
    assert (await edge.ask("POST", path, USER)).status_code == 200
    assert (await edge.ask("POST", path, USER, **{"x-tenant-id": "other"})).status_code == 403
    assert edge.tenants == ["acme"]


async def test_a_key_goes_no_further_than_the_edge(edge: Edge) -> None:
    await edge.ask("POST", "/v1/completions", USER)
    await edge.client.post("/v1/messages", headers={"x-api-key": USER.key}, content=b"{}")
    assert edge.reached == ["/v1/completions", "/v1/messages"]
    assert USER.key not in str(edge.headers)


async def test_a_key_that_is_taken_back_works_no_more(edge: Edge) -> None:
    assert (await edge.ask("GET", "/v1/models", USER)).status_code == 200
    edge.keys = [entry for entry in edge.keys if entry != USER.entry]
    assert (await edge.ask("GET", "/v1/models", USER)).status_code == 401
