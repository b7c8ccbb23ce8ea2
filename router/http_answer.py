"""How the HTTP API answers when something is wrong: error objects, their status, and never a stream that just stops,
unless its client does not read.

Wraps an ASGI `send`. It must not know why a request failed beyond the error's row in the table.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import Message, Send

from cluster.errors import Answer, BatonError, ClientLost, answer_for
from cluster.tracing import TRACEPARENT
from router.caller import Caller

RETRY_AFTER_S = 1
"""For what may soon work again, where nobody has said when."""

_RETRY_LATER = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})
_ERROR_EVENT = b'data: {"error"'
_NAMED_ERROR = b"event: error"
_COMMENT = b":"  # says that the connection lives


def error_body(error: BaseException, answer: Answer) -> bytes:
    """An error object as JSON, of OpenAI's form and, as far as it goes, Anthropic's. What is not ours to explain is not
    shown to the client."""
    message = str(error) if isinstance(error, BatonError) else "internal error; the router's log has the details"
    param = getattr(error, "param", None)
    content = {"message": message, "type": answer.kind, "param": param, "code": answer.http.value}
    return json.dumps({"error": content, "type": "error"}).encode()


def _error_event(error: BaseException) -> bytes:
    return b"data: " + error_body(error, answer_for(error)) + b"\n\n"


class SafeSend:
    """Holds the start of a response until its body begins, and an event stream until the first token has come: one that
    is refused until then becomes a plain answer with that error's status. A stream that breaks later ends with an error
    event. `caller` hears of errors, and when to come back, wherever that is decided; of what it has heard the client
    gets the words, whatever a frontend makes of them. A client that does not read for `patience_s` is given up."""

    def __init__(self, send: Send, patience_s: float) -> None:
        self.caller = Caller()
        self.given_up = ""
        """Why the answer stays cut short; empty while it goes on."""
        self.complete = False
        """All of the answer is on its way."""
        self.status = 0
        """Of the answer; 0 before it begins."""
        self.first_part: Callable[[Caller], None] | None = None
        """Told once, when the first part of a streamed answer is on its way."""
        self._to_client = send
        self._patience_s = patience_s
        self._held: list[Message] = []  # a response start not sent yet, and what has come behind it
        self._started = False
        self._streams = False
        self._ended = False

    async def __call__(self, message: Message) -> None:
        if self._ended:
            return  # what follows an error that was answered in full
        if self._started:
            return await self._pass_on(message)
        self._held.append(message)
        if message["type"] == "http.response.body":
            await self._decide(self._held[0], message)

    async def answer(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """A whole answer, in place of what is held."""
        self._held = []
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await self._begin({"type": "http.response.start", "status": int(status), "headers": headers})
        self._ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: Exception) -> None:
        """Answers with the error, or with what the caller has heard, in whatever way is still possible."""
        if self._ended:
            return
        self.caller.hear(error)
        heard = self.caller.error or error
        if not self._started:
            await self._refuse(heard)
        elif self._streams:
            self._ended = True
            event = _error_event(heard) + b"data: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            raise error  # a body that announced its length was cut: the server closes the connection

    async def _refuse(self, error: BaseException) -> None:
        answer = answer_for(error)
        await self.answer(answer.http, error_body(error, answer))

    async def _decide(self, start: Message, part: Message) -> None:
        """Whether what is held is the answer, an error is, or there is more to come before either can be said."""
        body, error = part.get("body", b""), self.caller.error
        self._streams = _content_type(start).startswith(b"text/event-stream")
        if error is not None and (self._streams or start["status"] >= HTTPStatus.BAD_REQUEST):
            return await self._refuse(error)
        if self._streams and body.startswith(_ERROR_EVENT):
            return await self._answer_event(body)
        may_be_refused = self.caller.first_token is None and part.get("more_body", False)
        if self._streams and may_be_refused and not body.startswith(_COMMENT):
            return
        held, self._held = self._held, []
        await self._begin(held[0])
        for message in held[1:]:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        error, body = self.caller.error, message.get("body", b"")
        if error is not None and self._streams and body.startswith((_ERROR_EVENT, _NAMED_ERROR)):
            name = _NAMED_ERROR + b"\n" if body.startswith(_NAMED_ERROR) else b""
            message = {**message, "body": name + _error_event(error)}
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _send(self, message: Message) -> None:
        """Raises `ClientLost`. What the client has not read waits below; there is a limit to that, so this waits."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._to_client(message)
        except TimeoutError:
            self._ended = True
            # Words only: an error kept here would keep its frames, and with them the stream that is to end now.
            self.given_up = f"the client has not read for {self._patience_s:g} s"
            raise ClientLost(self.given_up) from None
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
            if self.first_part is not None and self._streams:
                told, self.first_part = self.first_part, None
                told(self.caller)

    async def _begin(self, start: Message) -> None:
        self._started = True
        headers = list(start.get("headers", ()))
        self.status = start["status"]
        if self.caller.trace is not None:
            headers.append((TRACEPARENT.encode(), self.caller.trace.traceparent.encode()))
        if start["status"] in _RETRY_LATER and not any(name.lower() == b"retry-after" for name, _ in headers):
            headers.append((b"retry-after", str(self.caller.retry_after_s or RETRY_AFTER_S).encode()))
        if start["status"] == HTTPStatus.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        await self._send({**start, "headers": headers})

    async def _answer_event(self, event: bytes) -> None:
        body = event.removeprefix(b"data: ").split(b"\n", 1)[0]
        code = json.loads(body)["error"].get("code")
        await self.answer(code if isinstance(code, int) and 400 <= code < 600 else 500, body)


def _content_type(start: Message) -> bytes:
    headers: list[tuple[bytes, bytes]] = list(start.get("headers", ()))
    return next((value for name, value in headers if name.lower() == b"content-type"), b"")
