"""Run as a program: a router of its own process, with streams open on workers of another.

Arguments: how many streams, then ROLE:ID:EPOCH:HOST:PORT of each worker. Prints one line once every stream has tokens,
and goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import sys

from cluster.clock import RealClock
from cluster.config import RouterConfig
from cluster.engine import Role
from cluster.membership import MemoryDirectory, WorkerRecord
from router.fleet import Fleet
from tests.router.dispatch_parts import parts
from tests.router.simulated_cluster import TTL_S, Clients
from tests.waiting import eventually

ENDLESS = 100_000
STREAMING = "streaming"


def record_of(text: str) -> WorkerRecord:
    role, worker_id, epoch, address = text.split(":", 3)
    return WorkerRecord(worker_id, Role(role), int(epoch), address)


async def main(streams: int, workers: list[WorkerRecord]) -> None:
    clock = RealClock()
    directory = MemoryDirectory(clock)
    for worker in workers:
        await directory.announce(worker, TTL_S)
    fleet = Fleet(RouterConfig(), directory, clock, "router-of-another-process", 7, parts(clock.now))
    await fleet.start()
    await eventually(lambda: all(fleet.dispatch.view.get(worker.worker_id) for worker in workers))
    clients = Clients(fleet.dispatch, "a")
    answers = [clients.open([number] * 40, ENDLESS) for number in range(streams)]
    await eventually(lambda: min(len(answer.tokens) for answer in answers) > 2)
    print(STREAMING, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [record_of(text) for text in sys.argv[2:]]))
