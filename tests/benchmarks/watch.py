"""How soon a router that has just started knows what every worker holds, and how it can serve meanwhile.

    python -m tests.benchmarks.watch --json

One process serves Watch for all workers, over real gRPC; this one is the router, with its real prefix index. Pauses
are those of a task that wants to run all the time; in CPU time they leave out what other processes took.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import random
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NoReturn

import grpc
import uvloop

from cluster.block_changes import BlockDelta
from cluster.clock import RealClock
from cluster.engine import Role
from cluster.membership import WorkerRecord
from cluster.rpc_options import SERVER_OPTIONS
from cluster.worker_watch import WatchFeed, serve_watch
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1 import worker_pb2_grpc
from router.prefix_index import PrefixIndex
from router.worker_link import WorkerLink
from router.worker_watch import Sinks, Turns, WorkerWatch
from tests.waiting import eventually

EPOCH = 1
_DEADLINE_S = 120.0


class _Service(worker_pb2_grpc.WorkerServicer):
    """Watch alone."""

    def __init__(self, feed: WatchFeed) -> None:
        self._feed = feed

    def Session(self, request_iterator: object, context: object) -> NoReturn:
        raise NotImplementedError

    def Describe(self, request: object, context: object) -> NoReturn:
        raise NotImplementedError

    def ForgetPrefixes(self, request: object, context: object) -> NoReturn:
        raise NotImplementedError

    async def Watch(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchReply]
    ) -> None:
        await serve_watch(self._feed, EPOCH, request, context)


def _serve(pipe: Connection, workers: int, blocks: int) -> None:
    uvloop.run(_serve_until_told(pipe, workers, blocks))


async def _serve_until_told(pipe: Connection, workers: int, blocks: int) -> None:
    """A fifth of what a worker holds, every worker holds."""
    draw = random.Random(1)
    shared = [draw.getrandbits(64) for _ in range(blocks // 5)]
    servers, ports = [], []
    for _ in range(workers):
        feed = WatchFeed(pb.Load, RealClock())
        own = [draw.getrandbits(64) for _ in range(blocks - len(shared))]
        feed.apply(BlockDelta(stored=(*shared, *own)))
        server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServicer_to_server(_Service(feed), server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
    pipe.send(ports)
    await asyncio.to_thread(pipe.recv)
    await asyncio.gather(*(server.stop(0) for server in servers))


@dataclass
class Pauses:
    """Seconds, the longest: by the clock, and of this thread's own computing."""

    wall: float = 0.0
    cpu: float = 0.0

    async def watch(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0)
            self.wall = max(self.wall, time.perf_counter() - wall)
            self.cpu = max(self.cpu, time.thread_time() - cpu)


class _Loads:
    def load_changed(self, worker_id: str, load: pb.Load) -> None: ...

    def state_changed(self, worker_id: str, state: pb.WorkerState.ValueType, reason: str) -> None: ...


async def recover(ports: list[int], blocks: int) -> dict[str, float]:
    """From nothing to an index that holds all that the workers hold."""
    index = PrefixIndex(most_blocks=len(ports) * blocks, guess_s=60.0)
    sinks, turns, clock = Sinks(index, _Loads()), Turns(), RealClock()
    links = [
        WorkerLink(WorkerRecord(f"w{i}", Role.PREFILL, EPOCH, f"127.0.0.1:{port}"), "r", 5.0)
        for i, port in enumerate(ports)
    ]
    watches = [WorkerWatch(link.record.worker_id, sinks, turns, clock, _DEADLINE_S) for link in links]
    for row, link in enumerate(links):
        index.add(link.record.worker_id, row, blocks)
    pauses = Pauses()
    ticking = asyncio.create_task(pauses.watch())
    begin = time.perf_counter()
    tasks = [
        asyncio.create_task(watch.run(link.watch, random.Random(1))) for watch, link in zip(watches, links, strict=True)
    ]
    try:
        await eventually(lambda: all(watch.complete for watch in watches), _DEADLINE_S)
        seconds = time.perf_counter() - begin
    finally:
        for task in (ticking, *tasks):
            task.cancel()
        await asyncio.gather(ticking, *tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in links))
    assert all(index.held_by(link.record.worker_id) == blocks for link in links)
    return {
        "seconds": round(seconds, 3),
        "longest_pause_ms": round(1000 * pauses.wall, 2),
        "longest_pause_cpu_ms": round(1000 * pauses.cpu, 2),
    }


def measure(workers: int, blocks: int, rounds: int) -> dict[str, object]:
    """The worst of all rounds, and each of them."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, workers, blocks), daemon=True)
    process.start()
    try:
        ports = here.recv()
        gc.collect()
        gc.freeze()  # as a router does once it has started
        uvloop.run(recover(ports[:1], blocks))  # meets cold code: not counted
        runs = [uvloop.run(recover(ports, blocks)) for _ in range(rounds)]
        here.send("end")
        process.join(10)
    finally:
        process.kill()
    longest = {key: max(run[key] for run in runs) for key in runs[0]}
    return {"workers": workers, "blocks": blocks, **longest, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on one line")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=15_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments.workers, arguments.blocks, arguments.rounds)
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
