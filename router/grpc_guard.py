"""The guard of the gRPC API: refuses a call before its service hears of it.

What a call takes is declared and decided in `guard`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cluster.errors import BatonError, answer_for
from router.guard import GRPC_ACCESS, Access, Guard

logger = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # of any service's messages
_Continue: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


class GrpcGuard(grpc.aio.ServerInterceptor):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(self, continuation: _Continue, details: grpc.HandlerCallDetails) -> _Handler | None:
        access = GRPC_ACCESS.get(details.method)
        try:
            entry = self._guard.check(access, details.invocation_metadata or ())
        except BatonError as error:
            return _refusing(error)
        if entry is not None and access is Access.OPERATE:
            logger.info("operator key %s calls %s", entry.id, details.method)
        return await continuation(details)


def _refusing(error: BatonError) -> _Handler:
    """Of a stream both ways, so that it need not wait for what the caller sends."""

    async def refuse(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(answer_for(error).grpc, str(error))

    return grpc.stream_stream_rpc_method_handler(refuse)
