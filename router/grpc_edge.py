"""The public gRPC API: its server, and `baton.v1.Inference` in terms of `TextGeneration`.

Translates messages and errors; what a prompt becomes is the frontend's business. A cancelled or expired call ends its
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from contextlib import aclosing

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.config import RouterConfig
from cluster.errors import BatonError, ClientLost, StartFailed, answer_for, retry_after_s
from cluster.host_port import host_port
from cluster.tracing import TRACEPARENT
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from router.caller import Caller, checked_word, name_caller
from router.defence import OPEN, Defence
from router.edge_watch import EdgeWatch
from router.grpc_guard import GrpcGuard
from router.grpc_messages import prompt_of, response_of, sampling_of
from router.guard import Guard
from router.session_id import HEADER, enter_session
from router.text_generation import TextGeneration

logger = logging.getLogger(__name__)

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
_ABORT_S = 5.0
HEALTH_S = 1.0
Leave = Callable[[Caller, ClientLost], None]
_Context = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]


class InferenceService(inference_pb2_grpc.InferenceServicer):
    def __init__(
        self, text: TextGeneration, config: RouterConfig, leave: Leave, guard: Guard, watch: EdgeWatch | None = None
    ) -> None:
        self._text = text
        self._config = config
        self._leave = leave
        self._guard = guard
        self._watch = watch or EdgeWatch()

    async def Generate(  # type: ignore[override]  # besides a generator, grpc.aio takes a coroutine that writes
        self, request: inference_pb2.GenerateRequest, context: _Context
    ) -> None:
        request_id = request.request_id or f"grpc-{uuid.uuid4().hex}"
        try:
            await self._generate(request, request_id, context)
        except ClientLost as error:
            logger.warning("Generate %s ends: %s", request_id, error)
            async with asyncio.timeout(_ABORT_S):  # a client that does not read keeps the status from leaving, too
                await context.abort(answer_for(error).grpc, str(error))
        except BatonError as error:
            await context.abort(answer_for(error).grpc, str(error), _come_back(error))
        except Exception:
            logger.exception("Generate %s failed", request_id)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the router's log has the details")

    async def _generate(self, request: inference_pb2.GenerateRequest, request_id: str, context: _Context) -> None:
        checked_word("request_id", request_id)
        caller = self._guard.caller(context.invocation_metadata() or ())
        if (left_s := context.time_remaining()) is not None:
            caller.deadline = self._watch.now + left_s
        cut_short = "the client left, or its call has failed"
        caller.trace, begun = self._watch.begin(context.invocation_metadata() or ()), False
        if caller.trace is not None:
            await context.send_initial_metadata(((TRACEPARENT, caller.trace.traceparent),))
        name_caller(caller)
        prompt, sampling = prompt_of(request), sampling_of(request.sampling, self._config.max_choices)
        enter_session(_session_of(context))
        try:
            async with aclosing(self._text.generate(request.model, prompt, sampling, request_id)) as chunks:
                async for chunk in chunks:
                    await self._write(context, response_of(chunk, request_id, self._text.model, sampling.logprobs or 0))
                    if not begun:
                        begun = True
                        self._watch.answers(caller)
            cut_short = ""
        except BatonError as error:
            cut_short = str(error)
            raise
        finally:
            # gRPC may cancel a call again while it ends: what the frontend then leaves open ends here.
            if cut_short:
                self._leave(caller, ClientLost(cut_short))
            self._watch.ended(caller, "Generate", "failed" if cut_short else "OK", cut_short)

    async def _write(self, context: _Context, response: inference_pb2.GenerateResponse) -> None:
        """Raises `ClientLost`. Waits while the client has not read enough of what was sent before."""
        patience_s = self._config.client_deadline_s
        try:
            async with asyncio.timeout(patience_s):
                await context.write(response)
        except TimeoutError as error:
            raise ClientLost(f"the client has not read for {patience_s:g} s") from error

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: object
    ) -> inference_pb2.ListModelsResponse:
        model = inference_pb2.Model(id=self._text.model, max_model_len=self._text.max_model_len)
        return inference_pb2.ListModelsResponse(models=[model])


class GrpcEdge:
    """The server with all its services. Several routers of one machine share the port. `waiting`: calls that may wait
    for admission beside those that run. `leave` ends what a caller still has running, once nobody waits for it.
    `defence` is who gets in, and how connections are encrypted."""

    def __init__(
        self,
        config: RouterConfig,
        text: TextGeneration,
        admin: admin_pb2_grpc.AdminServicer,
        waiting: int = 0,
        leave: Leave = lambda caller, cause: None,
        defence: Defence = OPEN,
        watch: EdgeWatch | None = None,
    ) -> None:
        self._watch = watch
        self._config = config
        self._leave = leave
        self._defence = defence
        self._most_calls = 2 * (config.max_in_flight + waiting)
        self._text = text
        self._admin = admin
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listens; returns the port, which differs from the configured one if that is 0. Raises `StartFailed`."""
        address = host_port(self._config.grpc_host, self._config.grpc_port)
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", self._config.max_body_bytes),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ],
            interceptors=[GrpcGuard(self._defence.guard)] if self._defence.guard.asks else [],
            maximum_concurrent_rpcs=self._most_calls,
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(
            InferenceService(self._text, self._config, self._leave, self._defence.guard, self._watch), server
        )
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (_INFERENCE, _ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        try:
            port = self._defence.channels.open_port(server, address)
        except RuntimeError as error:
            raise StartFailed(f"router.grpc_port: cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server
        return port

    async def set_ready(self, ready: bool) -> None:
        """What the health service says of the server as a whole and of Inference."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", _INFERENCE):
            await self._health.set(name, status)

    async def follow(self, ready: Callable[[], bool], next_change: Callable[[], asyncio.Event]) -> None:
        """Tells the health service what `ready` says, until it is cancelled. At each change, and anew from time to
        time: not all that makes a router ready is a change of its fleet."""
        while True:
            change = next_change()
            await self.set_ready(ready())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_S):
                    await change.wait()

    async def close(self, grace_s: float) -> None:
        """Takes no new calls, waits so long for those that run, then cuts them. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            await server.stop(grace_s)


def _session_of(context: _Context) -> str:
    """Metadata that is not text names no session."""
    given = (value for name, value in context.invocation_metadata() or () if name == HEADER)
    name = next(given, "")
    return name if isinstance(name, str) else ""


def _come_back(error: BatonError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that says when to try again, for an error that knows."""
    seconds = retry_after_s(error)
    return () if seconds is None else (("retry-after", str(seconds)),)
