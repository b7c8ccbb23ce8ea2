"""The HTTP edge in front of a small application that answers as a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.config import RouterConfig
from router.caller import Caller
from router.http_edge import GENERATING, READING, HttpEdge

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


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    return error
