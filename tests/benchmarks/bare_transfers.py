"""What the transports are measured against: a NIXL READ and a gRPC stream with nothing around them.

No ticket, no checksum, no asyncio for NIXL; the gRPC stream sends one message again and again and its reader drops it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

from kv_transfer.block_server import server_options
from kv_transfer.grpc_transport import channel_options
from kv_transfer.transport import Layout

_METHOD = "Stream"
_SERVICE = "bare.Frames"
_THREADS = 4


class BareNixl:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._agent = nixl_agent(str(uuid.uuid4()), nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        spans = [(r.address, r.stride * r.num_blocks, 0, "") for r in layout.regions]
        self._registered = self._agent.register_memory(spans, layout.memory)
        self.metadata: bytes = self._agent.get_agent_metadata()

    def connect(self, metadata: bytes) -> Any:
        return self._agent.add_remote_agent(metadata)

    def read(self, peer: Any, there: Layout, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        """One list of descriptors a side, one READ, polled without a pause."""
        agent = self._agent
        remote = agent.get_xfer_descs(_descriptors(there, source), there.memory)
        local = agent.get_xfer_descs(_descriptors(self._layout, target), self._layout.memory)
        handle = agent.initialize_xfer("READ", local, remote, peer)
        state = agent.transfer(handle)
        while state == "PROC":
            time.sleep(0)
            state = agent.check_xfer_state(handle)
        assert state == "DONE", state
        agent.release_xfer_handle(handle)

    def progress(self) -> None:
        self._agent.get_new_notifs()

    def close(self) -> None:
        self._agent.deregister_memory(self._registered)


class BareServer:
    """Answers with as many bytes as asked for, in messages of `frame_bytes` that are made beforehand."""

    def __init__(self, frame_bytes: int) -> None:
        self._message = bytes(frame_bytes)
        self._pool = ThreadPoolExecutor(_THREADS)
        self._server = grpc.server(self._pool, options=server_options(frame_bytes, _THREADS))
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method}),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        left = int(request)
        while left >= len(self._message):
            yield self._message
            left -= len(self._message)
        if left:
            yield self._message[:left]


class BareClient:
    def __init__(self, address: str, frame_bytes: int) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(frame_bytes))
        self._stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{_SERVICE}/{_METHOD}"
        )

    async def receive(self, size: int) -> None:
        call = self._stream(str(size).encode())
        received = 0
        while isinstance(message := await call.read(), bytes):
            received += len(message)
        assert received == size

    async def close(self) -> None:
        await self._channel.close(None)


def _descriptors(layout: Layout, block_ids: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    ids = np.asarray(block_ids, np.uint64)
    rows = [
        (region.address + ids * region.stride, np.full(len(ids), region.block_bytes), np.zeros(len(ids)))
        for region in layout.regions
    ]
    return np.concatenate([np.stack(row, axis=1).astype(np.uint64) for row in rows])
