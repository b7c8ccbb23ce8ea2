"""The guard of the gRPC API: refuses a call before its service hears of it.

What a call takes is declared and decided in `guard`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
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
        access, service = GRPC_ACCESS.get(details.method), await continuation(details)
        try:
            entry = self._guard.check(access, details.invocation_metadata or ())
        except BatonError as error:
            return _refusing(error, service)
        if entry is not None and access is Access.OPERATE:
            logger.info("operator key %s calls %s", entry.id, details.method)
        return service


def _refusing(error: BatonError, service: _Handler | None) -> _Handler:
    """Of the same kind as the service's own. What a unary caller sends is read before it is refused: a call that ends
    while its message is on the way may end as INTERNAL. Of a stream nothing is waited for."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(answer_for(error).grpc, str(error))

    if service is None or service.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    if service.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
