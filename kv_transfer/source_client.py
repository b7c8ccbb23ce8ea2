"""A reader's calls to one KvSource, each with a deadline and with our own errors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc
import grpc.aio

from cluster.errors import FingerprintMismatch, LeaseLost, TransferFailed
from cluster.kv_link import KvStats
from cluster.rpc_options import CHANNEL_OPTIONS
from cluster.tls import PLAIN, Channels
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.growing_exports import Followed
from kv_transfer.kv_wire import endpoint_from_wire, lease_from_wire, stats_from_wire
from kv_transfer.lease import LeaseView
from kv_transfer.refusals import kinds, refusal_kind
from kv_transfer.transport import Endpoint
from protos.baton.v1 import kv_pb2 as pb
from protos.baton.v1.kv_pb2_grpc import KvSourceStub

T = TypeVar("T")

_KNOWN = kinds(LeaseLost, FingerprintMismatch)


class SourceClient:
    """One channel. `reader_id` names this engine start to the source; `call_s` is the deadline of a call, seconds.

    Every method raises `TransferFailed` when the source does not answer in time.
    """

    def __init__(self, address: str, reader_id: str, call_s: float, channels: Channels = PLAIN) -> None:
        self.address = address
        self._reader_id = reader_id
        self._call_s = call_s
        self._channel = channels.dial(address, CHANNEL_OPTIONS)
        self._stub = KvSourceStub(self._channel)

    async def connect(self, epoch: int, fingerprint: Fingerprint) -> tuple[Endpoint, ...]:
        """One endpoint a rank. Raises `LeaseLost` (the source is of another epoch), `FingerprintMismatch`."""
        request = pb.ConnectRequest(
            reader_id=self._reader_id,
            epoch=epoch,
            fingerprint=fingerprint.digest,
            fingerprint_fields=dict(fingerprint.fields),
        )
        response = await self._call(self._stub.Connect(request, timeout=self._call_s))
        return tuple(endpoint_from_wire(endpoint) for endpoint in response.ranks)

    async def claim(self, lease_id: str, epoch: int) -> float:
        """Seconds for which the lease holds. Raises `LeaseLost`."""
        request = pb.ClaimRequest(lease_id=lease_id, epoch=epoch, reader_id=self._reader_id)
        response = await self._call(self._stub.Claim(request, timeout=self._call_s))
        return response.ttl_ms / 1000

    async def complete(self, lease_id: str, epoch: int, rank: int, blocks: int, size: int) -> None:
        """Raises `LeaseLost`: what was read must not be used."""
        request = pb.CompleteRequest(
            lease_id=lease_id, epoch=epoch, reader_id=self._reader_id, rank=rank, blocks=blocks, bytes=size
        )
        await self._call(self._stub.Complete(request, timeout=self._call_s))

    async def release(self, lease_id: str, rank: int = 0) -> None:
        request = pb.ReleaseRequest(lease_id=lease_id, reader_id=self._reader_id, rank=rank)
        await self._call(self._stub.Release(request, timeout=self._call_s))

    async def follow(self, lease_id: str, epoch: int, known_blocks: int) -> Followed | None:
        """What is there of a prompt in progress; the source waits a moment for more than `known_blocks`. Claims or
        renews the lease. None: the source knows no such lease, perhaps not yet. Raises `LeaseLost`."""
        request = pb.FollowRequest(lease_id=lease_id, epoch=epoch, reader_id=self._reader_id, known_blocks=known_blocks)
        try:
            response = await self._call(self._stub.Follow(request, timeout=self._call_s))
        except TransferFailed as error:
            cause = error.__cause__
            if isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return Followed(response.ticket, response.closed, response.ttl_ms / 1000)

    async def stats(self) -> KvStats:
        return stats_from_wire(await self._call(self._stub.Stats(pb.KvStatsRequest(), timeout=self._call_s)))

    async def leases(self) -> tuple[LeaseView, ...]:
        """Those that live, oldest first."""
        response = await self._call(self._stub.Leases(pb.KvLeasesRequest(), timeout=self._call_s))
        return tuple(map(lease_from_wire, response.leases))

    async def close(self) -> None:
        await self._channel.close(None)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if (kind := refusal_kind(error, _KNOWN)) is not None:
                raise kind(error.details()) from error
            raise TransferFailed(f"{self.address}: {error.code().name}: {error.details()}") from error
