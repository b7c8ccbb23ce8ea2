"""A KvBlocks whose every answer the test writes, and one in a process of its own that can be killed."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import grpc

from kv_transfer.block_frames import encode
from kv_transfer.block_server import METHOD, SERVICE
from kv_transfer.transport import Endpoint
from protos.baton.v1 import kv_pb2 as pb
from tests.kv_transfer.block_caches import filled_cache, layout_of

Answer = Callable[[pb.ReadBlocksRequest, grpc.ServicerContext], Iterator[bytes]]


@dataclass
class ScriptedBlocks:
    """Answers the first stream with the first of `answers`, and so on; the last one answers all further streams.

    `asked`: the requests so far. `ended`: set when a stream has ended, however it did.
    """

    answers: list[Answer]
    asked: list[pb.ReadBlocksRequest] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="kv-blocks-scripted")
        self._server = grpc.server(self._pool)
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _answer(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        request = pb.ReadBlocksRequest.FromString(data)
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(request)
        context.add_callback(self.ended.set)
        yield from answer(request, context)


def frame(data: bytes, offset: int) -> bytes:
    def fill(memory: memoryview) -> None:
        memory[:] = data

    return encode(offset, len(data), fill)


def stall(context: grpc.ServicerContext) -> None:
    """Says nothing more until the reader is gone."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait()


@dataclass
class MortalBlocks:
    """A writer that sends the first frame of whatever is asked, and stalls."""

    process: BaseProcess
    endpoint: Endpoint

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def mortal_blocks(shape: tuple[int, int, int], frame_bytes: int) -> Iterator[MortalBlocks]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, shape, frame_bytes))
    process.start()
    writer = MortalBlocks(process, here.recv())
    yield writer
    writer.kill()


def _serve(pipe: Connection, shape: tuple[int, int, int], frame_bytes: int) -> None:
    cache = filled_cache(*shape)

    def first_frame(request: pb.ReadBlocksRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        if request.offset == 0:
            yield frame(cache[0].tobytes()[:frame_bytes], 0)
        stall(context)

    writer = ScriptedBlocks([first_frame])
    pipe.send(Endpoint({"grpc": writer.address.encode()}, layout_of(cache)))
    pipe.poll(None)  # until it is killed
