"""KvBlocks as served beside the KV tensors of one rank: streams the blocks of a ticket, frame by frame.

Owns the gRPC server, its threads and the bounds on what is under way. Which reads are allowed `block_permit` decides,
where the bytes lie `block_memory` knows. Nothing here waits for a forward pass.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import NoReturn

import grpc

from cluster.errors import InvalidRequest, Overloaded
from cluster.rpc_options import SERVER_OPTIONS
from cluster.tls import PLAIN, Channels
from kv_transfer.block_frames import FRAME_SLACK, FRAMES_A_STREAM, MOST_FRAME_BYTES, StreamLimits, encode
from kv_transfer.block_memory import memory_of
from kv_transfer.block_permit import ReadPermit, ReadRefused, TicketRule, permit
from kv_transfer.refusals import listen, refuse
from kv_transfer.transport import Layout

SERVICE, METHOD = "baton.v1.KvBlocks", "ReadBlocks"
PROBE_BYTES = 4096
LONGEST_STREAM_S = 300.0
_MOST_REQUEST_BYTES = 1 << 20
_SPARE_THREADS = 2  # for probes and refusals while all streams are taken
_MOST_WAITING = 256  # calls, for a thread that gives them their answer: gRPC refuses more in words that are not ours
_HANDSHAKE_MS = 5_000
_STOP_S = 2.0


def _zero(data: memoryview) -> None:
    data[:] = bytes(len(data))


_PROBE_FRAME = encode(0, PROBE_BYTES, _zero)


class BlockServer:
    """Listens from its making on. `address` is what peers dial: the advertised host with the port found at start.
    Raises `ConfigError` where it cannot listen."""

    def __init__(
        self,
        layout: Layout,
        rule: TicketRule,
        limits: StreamLimits,
        listen_host: str,
        advertise_host: str,
        channels: Channels = PLAIN,
    ) -> None:
        self._layout = layout
        self._rule = rule
        self._limits = limits
        self._memory = memory_of(layout)
        self._open = _OpenStreams(limits)
        self._closing = False
        threads = limits.most_streams + _SPARE_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kv-blocks")
        self._server = grpc.server(
            self._pool,
            options=server_options(limits.frame(), threads),
            maximum_concurrent_rpcs=threads + _MOST_WAITING,
        )
        # Bytes in, bytes out: requests are parsed where a refusal can be counted, frames are ready as they are.
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
        self.address = listen(self._server, "KvBlocks", channels, listen_host, advertise_host)
        self._server.start()

    def __repr__(self) -> str:
        return f"<BlockServer {self.address} {self._open!r} refused={dict(self.refused)}>"

    @property
    def refused(self) -> Mapping[str, int]:
        """Reads that were refused, by reason: malformed, ticket, epoch, blocks, busy."""
        return self._open.refused

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._open.count

    def close(self) -> None:
        """Ends all streams. No thread touches a block after it. May be called twice."""
        self._closing = True
        self._server.stop(0).wait(_STOP_S)
        self._pool.shutdown(wait=True)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            granted = permit(request, self._rule, self._layout)
            if granted.is_probe:
                yield _PROBE_FRAME
                return
            if context.time_remaining() > LONGEST_STREAM_S:
                text = f"a stream needs a deadline of at most {LONGEST_STREAM_S:g} s"
                raise ReadRefused("malformed", grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest(text))
            frame_bytes = self._limits.frame(granted.frame_bytes)
            with self._open.stream(frame_bytes):
                yield from self._frames(granted, frame_bytes, context)
        except ReadRefused as refusal:
            self._refuse(refusal, context)

    def _frames(self, granted: ReadPermit, frame_bytes: int, context: grpc.ServicerContext) -> Iterator[bytes]:
        """gRPC asks for the next one when it has taken the last one over, so a slow reader holds us back."""
        blocks = self._memory.open(granted.block_ids)
        try:
            for offset in range(granted.offset, blocks.size, frame_bytes):
                if not context.is_active():
                    return
                if self._closing:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "this engine stops")
                size = min(frame_bytes, blocks.size - offset)
                yield encode(offset, size, partial(blocks.gather, offset))
        finally:
            blocks.close()

    def _refuse(self, refusal: ReadRefused, context: grpc.ServicerContext) -> NoReturn:
        self._open.refuse(refusal.reason)
        refuse(context, refusal.status, refusal.error)


class _OpenStreams:
    """What is under way, and what was refused. Shared by the server's threads."""

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self.refused = MappingProxyType(self._refused)
        self.count = 0
        self._bytes = 0

    def __repr__(self) -> str:
        return f"streams={self.count} bytes={self._bytes}"

    def refuse(self, reason: str) -> None:
        with self._lock:
            self._refused[reason] += 1

    @contextmanager
    def stream(self, frame_bytes: int) -> Iterator[None]:
        """Raises `ReadRefused` when all are taken."""
        size = FRAMES_A_STREAM * frame_bytes
        with self._lock:
            fits = self._bytes + size <= self._limits.in_flight_bytes or not self.count
            if self.count >= self._limits.most_streams or not fits:
                text = f"{self.count} reads of {self._bytes} bytes in flight are under way; try again"
                raise ReadRefused("busy", grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded(text))
            self.count += 1
            self._bytes += size
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1
                self._bytes -= size


def server_options(frame_bytes: int, threads: int) -> list[tuple[str, int]]:
    """Of a server that streams frames of `frame_bytes` from `threads` threads."""
    ours = {
        "grpc.max_receive_message_length": _MOST_REQUEST_BYTES,
        "grpc.max_send_message_length": MOST_FRAME_BYTES + FRAME_SLACK,
        "grpc.max_concurrent_streams": threads,
        # Two frames may wait in the transport, so that the next one is made while they are sent.
        "grpc.http2.write_buffer_size": 2 * frame_bytes,
        # Whoever connects and says nothing, or nothing of HTTP/2, is let go of.
        "grpc.server_handshake_timeout_ms": _HANDSHAKE_MS,
    }
    return list({**dict(SERVER_OPTIONS), **ours}.items())
