"""The router's end of a worker's Session stream, written by hand."""

from __future__ import annotations

from typing import cast

import grpc

from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1.worker_pb2_grpc import WorkerStub

SessionCall = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionReply]


def open_stream(stub: WorkerStub) -> SessionCall:
    """A stream to write to; grpc.aio allows that, its type stubs do not."""
    return cast(SessionCall, stub.Session())  # type: ignore[call-arg]


async def open_session(stub: WorkerStub, epoch: int, router_id: str = "r") -> SessionCall:
    call = open_stream(stub)
    await call.write(pb.SessionRequest(hello=pb.Hello(router_id=router_id, epoch=epoch)))
    return call
