"""The gRPC transport: pulls frames from a peer's KvBlocks and puts them into our own blocks, on the mover's event loop.

Owns the channels and the reading of one stream; `block_server` serves our own blocks to others. A broken stream goes on
behind its last good frame. Bytes are written by our own code only, between two awaits: once a read has ended, however
it did, nothing can write any more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from cluster.errors import BatonError, InvalidRequest, LeaseLost, Overloaded, TicketRefused, TransferFailed
from cluster.rpc_options import CHANNEL_OPTIONS
from cluster.tls import PLAIN, Channels
from kv_transfer.block_frames import FRAME_SLACK, BadFrame, StreamLimits, decode
from kv_transfer.block_memory import BlockBytes, memory_of
from kv_transfer.block_server import METHOD, PROBE_BYTES, SERVICE, BlockServer
from kv_transfer.pauses import Pauses
from kv_transfer.refusals import kinds, refusal_kind
from kv_transfer.transport import BlockRead, Endpoint, Layout
from protos.baton.v1 import kv_pb2 as pb

_STREAM_S = 60.0  # a longer read goes on in a new stream; this only ends those whose reader is wedged
_IDLE_RESUMES = 3
_TOO_LARGE = "message larger than max"  # in gRPC's words

_KNOWN = kinds(TicketRefused, LeaseLost, Overloaded, InvalidRequest)
_Call = grpc.aio.UnaryStreamCall[pb.ReadBlocksRequest, bytes]


@dataclass(slots=True, eq=False)
class GrpcPeer:
    address: str
    channel: grpc.aio.Channel
    read_blocks: grpc.aio.UnaryStreamMultiCallable[pb.ReadBlocksRequest, bytes]


class GrpcTransport:
    """Reads into the memory that `layout` describes; it must stay where it is until `close`. `server` serves the same
    memory and is closed with the transport. `channels`: how peers are dialled. `draw`: that of `Pauses`."""

    name = "grpc"

    def __init__(
        self,
        layout: Layout,
        limits: StreamLimits,
        server: BlockServer,
        channels: Channels = PLAIN,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._layout = layout
        self._draw = draw
        self._memory = memory_of(layout)
        self._server = server
        self._channels = channels
        self._frame_bytes = limits.frame()
        self._turns = asyncio.Semaphore(limits.streams)
        self._peers: set[GrpcPeer] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self.resumed = 0

    def __repr__(self) -> str:
        return f"<GrpcTransport peers={len(self._peers)} resumed={self.resumed}>"

    def offer(self) -> bytes:
        return self._server.address.encode()

    def connect(self, endpoint: Endpoint) -> GrpcPeer:
        if endpoint.layout.block_sizes != self._layout.block_sizes:
            raise TransferFailed("the peer's blocks have other sizes than ours")
        address = _address(endpoint.offers.get(self.name, b""))
        channel = self._channels.dial(address, channel_options(self._frame_bytes))
        peer = GrpcPeer(address, channel, _read_blocks(channel))
        self._peers.add(peer)
        return peer

    async def probe(self, peer: GrpcPeer) -> None:
        """The peer answers a request for no block with one frame of zeros: its process is alive and its frames pass.
        Raises `Overloaded` as well."""
        call = peer.read_blocks(pb.ReadBlocksRequest(), timeout=_STREAM_S)
        try:
            message = await _next(call)
        except grpc.aio.AioRpcError as error:
            busy = _kind(error) is Overloaded
            raise (Overloaded if busy else TransferFailed)(_words(peer, error)) from None
        finally:
            call.cancel()
        if message is None or len(decode(message, PROBE_BYTES).data) != PROBE_BYTES:
            raise TransferFailed(f"{peer.address}: the answer to a probe is not the one agreed")

    def turn(self) -> asyncio.Semaphore:
        return self._turns

    async def read(self, peer: GrpcPeer, read: BlockRead) -> None:
        """Raises `TicketRefused`, `LeaseLost`, `TransferFailed` and `Overloaded`. A writer that has sent nothing yet is
        not asked again when it is busy: the turn may be another's meanwhile."""
        blocks = self._memory.open(read.target)
        try:
            await self._fetch(peer, read, _Landing(blocks, self._frame_bytes))
        finally:
            blocks.close()

    def disconnect(self, peer: GrpcPeer) -> None:
        self._peers.discard(peer)
        task = asyncio.ensure_future(peer.channel.close(None))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    def progress(self) -> None:
        """gRPC has threads of its own."""

    def close(self) -> None:
        for peer in list(self._peers):
            self.disconnect(peer)
        self._server.close()

    async def _fetch(self, peer: GrpcPeer, read: BlockRead, landing: _Landing) -> None:
        idle, pauses = 0, Pauses(self._draw)
        time = asyncio.get_running_loop().time
        busy_until = time() + read.busy_s
        while not landing.complete:
            before = landing.landed
            failure = await self._stream(peer, read, landing)
            if failure is None:
                return
            if landing.landed > before:
                idle, busy_until = 0, time() + read.busy_s
                pauses.begin_anew()
            elif not isinstance(failure, Overloaded):
                idle += 1
            elif not landing.landed or time() > busy_until:
                raise failure
            if idle > _IDLE_RESUMES:
                raise TransferFailed(f"{failure}; {landing} and {idle - 1} more tries brought nothing")
            self.resumed += 1
            await asyncio.sleep(pauses.take())

    async def _stream(self, peer: GrpcPeer, read: BlockRead, landing: _Landing) -> BatonError | None:
        """One stream, from where the last one ended. What broke it, if it can go on; None when all bytes are there.
        Raises what another stream would not mend."""
        request = pb.ReadBlocksRequest(
            ticket=read.ticket, block_ids=read.source, offset=landing.landed, frame_bytes=self._frame_bytes
        )
        call = peer.read_blocks(request, timeout=_STREAM_S)
        try:
            while not landing.complete:
                message = await _next(call)
                if message is None:
                    return TransferFailed(f"{peer.address}: the stream ended early")
                landing.put(message)
        except BadFrame as error:
            return BadFrame(f"{peer.address}: {error}")
        except grpc.aio.AioRpcError as error:
            return _refused_or_broken(peer, error)
        finally:
            call.cancel()
        return None


class _Landing:
    """The blocks of one read, filled from the front: `landed` bytes are there and good."""

    def __init__(self, blocks: BlockBytes, most_frame: int) -> None:
        self._blocks = blocks
        self._most_frame = most_frame
        self.landed = 0

    def __str__(self) -> str:
        return f"{self.landed} of {self._blocks.size} bytes had landed"

    @property
    def complete(self) -> bool:
        return self.landed == self._blocks.size

    def put(self, message: bytes) -> None:
        """Raises `BadFrame`; then nothing of it is counted as landed."""
        offset, data = decode(message, self._most_frame)
        if offset != self.landed or not data or offset + len(data) > self._blocks.size:
            raise BadFrame(f"{len(data)} bytes at {offset} of {self._blocks.size} came, but {self.landed} is the next")
        self._blocks.scatter(offset, data)
        self.landed += len(data)


async def _next(call: _Call) -> bytes | None:
    """None at the end of the stream."""
    message = await call.read()
    return message if isinstance(message, bytes) else None


def _refused_or_broken(peer: GrpcPeer, error: grpc.aio.AioRpcError) -> BatonError:
    """Raises a refusal; gives back what another stream may mend."""
    kind = _kind(error) or TransferFailed
    if kind in (TicketRefused, LeaseLost):
        raise kind(f"{peer.address}: {error.details()}") from None
    if kind is InvalidRequest or error.code() is grpc.StatusCode.UNIMPLEMENTED:
        raise TransferFailed(_words(peer, error)) from None
    return kind(_words(peer, error))


def _kind(error: grpc.aio.AioRpcError) -> type[BatonError] | None:
    """A writer whose gRPC takes no more calls names no class of ours, but is as busy as one without a free stream. A
    message that is too large has the same status."""
    exhausted = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE not in (error.details() or "")
    return refusal_kind(error, _KNOWN) or (Overloaded if exhausted else None)


def _words(peer: GrpcPeer, error: grpc.aio.AioRpcError) -> str:
    return f"{peer.address}: {error.code().name}: {error.details()}"


def _address(offer: bytes) -> str:
    host, _, port = offer.decode("ascii", "replace").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65535:
        raise TransferFailed(f"{offer!r} is not the host:port of a peer's KvBlocks")
    return f"{host}:{port}"


def _read_blocks(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamMultiCallable[pb.ReadBlocksRequest, bytes]:
    serializer = pb.ReadBlocksRequest.SerializeToString
    return channel.unary_stream(f"/{SERVICE}/{METHOD}", request_serializer=serializer)


def channel_options(frame_bytes: int) -> list[tuple[str, int]]:
    """Of a channel over which frames of `frame_bytes` come."""
    ours = {
        "grpc.max_receive_message_length": frame_bytes + FRAME_SLACK,
        # The next frame arrives while the last one is put into its blocks; and no more than that: a window that grows
        # with the connection's speed would take more memory than may be in flight.
        "grpc.http2.lookahead_bytes": frame_bytes,
        "grpc.http2.bdp_probe": 0,
        "grpc.http2.max_frame_size": frame_bytes,
    }
    return list({**dict(CHANNEL_OPTIONS), **ours}.items())
