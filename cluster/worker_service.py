"""The gRPC server of a worker: binds the service of worker.proto to whoever answers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from cluster.call_abort import abort_call
from cluster.engine import Engine
from cluster.errors import EngineFailed, StartFailed
from cluster.host_port import host_port
from cluster.rpc_options import SERVER_OPTIONS
from cluster.tls import cluster_channels
from cluster.worker_session import Session, SessionHost
from cluster.worker_spec import WorkerSpec
from cluster.worker_watch import WatchFeed, serve_watch
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1 import worker_pb2_grpc

_GRACE_S = 1.0
_FORGET_S = 10.0


class WorkerServer:
    """Raises `ConfigError` for certificates that cannot be used."""

    def __init__(self, host: SessionHost, engine: Engine, feed: WatchFeed, spec: WorkerSpec) -> None:
        self._address = host_port(spec.listen_host, spec.port)
        self._channels = cluster_channels(spec.tls)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServicer_to_server(_Service(host, engine, feed, spec.outgoing_limit), self._server)

    async def start(self) -> int:
        """Returns the port it listens on. Raises `StartFailed`: the address cannot be used."""
        try:
            bound = self._channels.open_port(self._server, self._address)
        except RuntimeError as error:
            raise StartFailed(f"cannot listen on {self._address}: {error}") from error
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """Ends what still runs after a short grace."""
        await self._server.stop(_GRACE_S)


class _Service(worker_pb2_grpc.WorkerServicer):
    def __init__(self, host: SessionHost, engine: Engine, feed: WatchFeed, outgoing_limit: int) -> None:
        self._host = host
        self._engine = engine
        self._feed = feed
        self._outgoing_limit = outgoing_limit

    async def Session(  # type: ignore[override]  # besides a generator, grpc.aio takes a coroutine that writes
        self,
        request_iterator: AsyncIterator[pb.SessionRequest],
        context: grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionReply],
    ) -> None:
        await Session(self._host, self._outgoing_limit).run(request_iterator, context)

    async def Describe(
        self,
        request: pb.DescribeRequest,
        context: grpc.aio.ServicerContext[pb.DescribeRequest, pb.WorkerDescription],
    ) -> pb.WorkerDescription:
        return await self._host.describe()

    async def Watch(  # type: ignore[override]  # as above
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchReply]
    ) -> None:
        await serve_watch(self._feed, self._host.epoch, request, context)

    async def ForgetPrefixes(
        self,
        request: pb.ForgetPrefixesRequest,
        context: grpc.aio.ServicerContext[pb.ForgetPrefixesRequest, pb.ForgetPrefixesResponse],
    ) -> pb.ForgetPrefixesResponse:
        """The engine says itself whether it may, in one step of its own: nothing can begin in between."""
        try:
            async with asyncio.timeout(_FORGET_S):
                return pb.ForgetPrefixesResponse(forgotten=await self._engine.forget_prefixes())
        except (EngineFailed, TimeoutError) as error:
            await abort_call(context, grpc.StatusCode.UNAVAILABLE, str(error) or f"no answer within {_FORGET_S:g} s")
