"""The end of a gRPC call by this side, with a status that says why."""

from __future__ import annotations

import asyncio
from typing import NoReturn, TypeVar

import grpc

_ABORT_S = 5.0

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


async def abort_call(
    context: grpc.aio.ServicerContext[_Request, _Reply], code: grpc.StatusCode, reason: str
) -> NoReturn:
    """Raises always. A peer that does not read also keeps the status from leaving: not for ever."""
    async with asyncio.timeout(_ABORT_S):
        await context.abort(code, reason)
    raise AssertionError("unreachable: abort always raises")
