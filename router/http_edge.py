"""The outermost ASGI layer of the HTTP API: which routes exist here, and what a request must be to get past.

Everything refused here is refused before it is tokenised or queued, with an OpenAI error object. It reads bodies as
JSON but must not know what a prompt or a model is; those checks are the frontend's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from http import HTTPStatus

import grpc
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.config import RouterConfig
from cluster.errors import Answer, BatonError, ClientLost, InvalidRequest, RequestTooLarge
from router.caller import Caller, checked_word, name_caller
from router.edge_watch import EdgeWatch
from router.guard import HTTP_ACCESS, Access, Guard
from router.http_answer import SafeSend, error_body
from router.http_body import checked_body
from router.metrics_page import CONTENT_TYPE, Page
from router.session_id import HEADER as SESSION_HEADER
from router.session_id import enter_session

logger = logging.getLogger(__name__)

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
METRICS = "/metrics"
REQUEST_ID_HEADER = "x-request-id"
"""The frontend names a request after it."""
READING = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
ROUTES: dict[str, frozenset[str]] = {
    "POST": GENERATING | READING,
    "GET": frozenset({"/v1/models", "/version", METRICS}),
}
"""What users need. Everything else that the frontend would answer acts on one local engine, or hands out internals."""

DROPPED_HEADERS = frozenset({b"x-data-parallel-rank", b"x-vllm-priority", b"authorization", b"x-api-key"})
"""They would steer the engine past the router, or show keys to what needs none."""

_NO_ROUTE = Answer(HTTPStatus.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, "invalid_request_error")


class HttpEdge:
    """`guard` refuses who has no key for a path first. `admit` raises when a caller's generating request
    cannot be taken now; `ready` tells whether any could; `leave` ends what a caller still has running, once nobody
    waits for it. `page` writes the metrics, if there are any."""

    def __init__(  # noqa: PLR0913 - what an edge asks of the parts behind it
        self,
        app: ASGIApp,
        config: RouterConfig,
        admit: Callable[[Caller], None],
        ready: Callable[[], bool],
        leave: Callable[[Caller, ClientLost], None] = lambda caller, cause: None,
        guard: Guard | None = None,
        page: Page | None = None,
        watch: EdgeWatch | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._admit = admit
        self._ready = ready
        self._leave = leave
        self._guard = guard or Guard()
        self._page = page
        self._watch = watch or EdgeWatch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, SafeSend(send, self._config.client_deadline_s))
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "no websocket API here"})

    async def _http(self, scope: Scope, receive: Receive, send: SafeSend) -> None:
        try:
            self._guard.check(HTTP_ACCESS.get(scope["path"], Access.USER), scope["headers"])
            if scope["path"] == "/health" and scope["method"] in ("GET", "HEAD"):
                return await self._health(send)
            if scope["path"] not in ROUTES.get(scope["method"], frozenset()):
                return await self._no_route(scope, send)
            if scope["path"] == METRICS:
                return await self._metrics(scope, send)
            checked_word(REQUEST_ID_HEADER, _header(scope, REQUEST_ID_HEADER))
            enter_session(_header(scope, SESSION_HEADER))
            if scope["method"] == "POST":
                receive = await self._checked(scope, receive, send)
            headers = [(name, value) for name, value in scope["headers"] if name.lower() not in DROPPED_HEADERS]
            await self._app(dict(scope, headers=headers), receive, send)
        except Exception as error:
            if not (send.given_up or send.caller.error or isinstance(error, BatonError)):
                logger.exception("%s %s failed", scope["method"], scope["path"])
            with contextlib.suppress(ClientLost):
                await send.fail(error)
        finally:
            # A frontend that was cut off while it sent has not closed the stream of tokens behind it.
            if not send.complete and scope["path"] in GENERATING:
                cause = ClientLost(send.given_up or "the client left")
                logger.info("%s %s ends: %s", scope["method"], scope["path"], cause)
                self._leave(send.caller, cause)
            self._watch.ended(send.caller, f"{scope['method']} {scope['path']}", str(send.status), _failure(send))

    async def _health(self, send: SafeSend) -> None:
        status, text = (200, "ok") if self._ready() else (503, "no worker is ready")
        await send.answer(status, json.dumps({"status": text}).encode())

    async def _metrics(self, scope: Scope, send: SafeSend) -> None:
        if self._page is None:
            return await self._no_route(scope, send)
        await send.answer(HTTPStatus.OK, await self._page(), CONTENT_TYPE)

    async def _no_route(self, scope: Scope, send: SafeSend) -> None:
        known = ", ".join(sorted(f"{method} {path}" for method, paths in ROUTES.items() for path in paths))
        error = InvalidRequest(f"no route {scope['method']} {scope['path']} here; there are GET /health, {known}")
        await send.answer(_NO_ROUTE.http, error_body(error, _NO_ROUTE))

    async def _checked(self, scope: Scope, receive: Receive, send: SafeSend) -> Receive:
        """Lets the caller in, then reads and checks the body; returns what lets the application read it again."""
        if scope["path"] in GENERATING:
            send.caller = self._guard.caller(scope["headers"])
            send.caller.trace, send.first_part = self._watch.begin(scope["headers"]), self._watch.answers
            name_caller(send.caller)
            self._admit(send.caller)
        body = await self._read_in_time(scope, receive)
        checked_body(body, self._config)
        return _replayed(body, receive)

    async def _read_in_time(self, scope: Scope, receive: Receive) -> bytes:
        """Raises `RequestTooLarge`, `ClientLost`. The limit is on the whole: a body may come a byte at a time."""
        patience_s = self._config.client_deadline_s
        try:
            async with asyncio.timeout(patience_s):
                return await self._read(scope, receive)
        except TimeoutError as error:
            raise ClientLost(f"the body did not come within {patience_s:g} s") from error

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Raises `RequestTooLarge` as soon as the limit is passed, announced or not; `ClientLost`."""
        limit = self._config.max_body_bytes
        too_large = RequestTooLarge(f"the body is larger than the limit of {limit} bytes")
        announced = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLost("the client left before its body was read")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise too_large
            more = message.get("more_body", False)
        return b"".join(chunks)


def _failure(send: SafeSend) -> str:
    if send.given_up or not send.complete:
        return send.given_up or "the client left"
    return f"status {send.status}" if send.status >= HTTPStatus.INTERNAL_SERVER_ERROR else ""


def _header(scope: Scope, name: str) -> str:
    """Empty without one."""
    given = (value for key, value in scope["headers"] if key.lower() == name.encode())
    return next(given, b"").decode("latin-1")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the client does next: its disconnect must reach the application."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
