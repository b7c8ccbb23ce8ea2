"""KvSource as served inside an engine's process: answers readers and the owner from the lease book, never from the
engine.

Owns the gRPC server and the mapping of our errors to statuses. Its threads only take the book's lock, so they never
wait for a forward pass; a few of them at a time wait a moment for a prompt to grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from cluster.errors import BatonError, LeaseLost, answer_for
from cluster.kv_link import KvStats
from cluster.rpc_options import SERVER_OPTIONS
from cluster.tls import PLAIN, Channels
from kv_transfer.fingerprint import Fingerprint, require_equal
from kv_transfer.growing_exports import GrowingExports
from kv_transfer.kv_wire import endpoint_to_wire, lease_to_wire, stats_to_wire
from kv_transfer.lease_book import LeaseBook
from kv_transfer.refusals import listen, refuse
from kv_transfer.transport import Endpoint
from protos.baton.v1 import kv_pb2 as pb
from protos.baton.v1.kv_pb2_grpc import KvSourceServicer, add_KvSourceServicer_to_server

_THREADS = 4
_STOP_S = 1.0


class KvSource(KvSourceServicer):
    """`endpoints`: one a rank. `stats`: counts both halves of this engine's hand-off. `growing`: prompts that can be
    followed while they are computed; None where none can."""

    def __init__(
        self,
        book: LeaseBook,
        epoch: int,
        fingerprint: Fingerprint,
        endpoints: tuple[Endpoint, ...],
        stats: Callable[[], KvStats],
        growing: GrowingExports | None = None,
    ) -> None:
        self._book = book
        self._epoch = epoch
        self._fingerprint = fingerprint
        self._endpoints = endpoints
        self._stats = stats
        self._growing = growing

    def Connect(self, request: pb.ConnectRequest, context: grpc.ServicerContext) -> pb.ConnectResponse:
        with _answered(context):
            if request.epoch != self._epoch:
                raise LeaseLost(f"the ticket is of epoch {request.epoch}, this engine's is {self._epoch}")
            if request.fingerprint != self._fingerprint.digest:
                require_equal(request.fingerprint_fields, self._fingerprint)
        return pb.ConnectResponse(ranks=[endpoint_to_wire(endpoint) for endpoint in self._endpoints])

    def Claim(self, request: pb.ClaimRequest, context: grpc.ServicerContext) -> pb.ClaimResponse:
        with _answered(context):
            ttl_s = self._book.claim(request.lease_id, request.epoch, request.reader_id)
        return pb.ClaimResponse(ttl_ms=int(ttl_s * 1000))

    def Complete(self, request: pb.CompleteRequest, context: grpc.ServicerContext) -> pb.CompleteResponse:
        with _answered(context):
            self._book.complete(
                request.lease_id, request.epoch, request.reader_id, request.rank, request.blocks, request.bytes
            )
        return pb.CompleteResponse()

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseResponse:
        self._book.release(request.lease_id, request.reader_id, request.rank)
        return pb.ReleaseResponse()

    def Follow(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> pb.FollowResponse:
        followed = None
        with _answered(context):
            if self._growing is not None:
                followed = self._growing.follow(
                    request.lease_id, request.epoch, request.reader_id, request.known_blocks
                )
        if followed is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"attempt {request.lease_id} has no growing lease here")
        return pb.FollowResponse(ticket=followed.ticket, closed=followed.closed, ttl_ms=int(followed.held_s * 1000))

    def Stats(self, request: pb.KvStatsRequest, context: grpc.ServicerContext) -> pb.KvStatsResponse:
        return stats_to_wire(self._stats())

    def Leases(self, request: pb.KvLeasesRequest, context: grpc.ServicerContext) -> pb.KvLeasesResponse:
        return pb.KvLeasesResponse(leases=[lease_to_wire(lease) for lease in self._book.views()])


class KvSourceServer:
    """A listening KvSource. `address` is what peers dial: the advertised host with the port found at start."""

    def __init__(self, listen_host: str, advertise_host: str, channels: Channels = PLAIN) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="kv-source")
        self._server = grpc.server(self._pool, options=SERVER_OPTIONS)
        self.address = listen(self._server, "KvSource", channels, listen_host, advertise_host)

    def start(self, source: KvSource) -> None:
        add_KvSourceServicer_to_server(source, self._server)
        self._server.start()

    def close(self) -> None:
        """Stops serving and ends its threads. May be called twice."""
        self._server.stop(_STOP_S).wait(2 * _STOP_S)
        self._pool.shutdown(wait=False)


@contextmanager
def _answered(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except BatonError as error:
        refuse(context, answer_for(error).grpc, error)
