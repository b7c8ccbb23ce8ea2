"""A worker that Serve does not run: a process of its own at an address of its own, announced in the cluster's directory
as every worker is. Killed, the next one takes its name and its place.

    python -m tests.chaos.fixed_worker SPEC     (JSON: see `FixedSpec`)

It joins the cluster, says "joined", and begins to serve once it is told to by a line on its standard input.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.clock import RealClock
from cluster.config import load_config
from cluster.directory import RayDirectory
from cluster.engine import Engine, Role
from cluster.worker import WorkerSpec
from cluster.worker_replica import WorkerReplica
from kv_transfer.worker_engine import build_engine


@dataclass(frozen=True)
class FixedSpec:
    """It listens on `listen_host`, and says that it is at `advertise_host`, where a line leads to it."""

    config: str
    cluster_address: str
    worker_id: str
    role: str
    listen_host: str
    advertise_host: str
    port: int


async def _run(fixed: FixedSpec) -> None:
    config = load_config(Path(fixed.config))
    role = Role(fixed.role)
    pool = config.prefill if role is Role.PREFILL else config.decode
    clock = RealClock()

    async def build(spec: WorkerSpec, folder: Path) -> Engine:
        # Only the sessions go over the line: blocks are fetched where they are.
        direct = dataclasses.replace(spec, advertise_host=fixed.listen_host)
        return await build_engine(config, pool, clock, direct, folder)

    spec = WorkerSpec(
        fixed.worker_id,
        role,
        time.time_ns(),
        listen_host=fixed.listen_host,
        advertise_host=fixed.advertise_host,
        port=fixed.port,
        stall_after_s=config.engine.stall_after_s,
    )
    replica = WorkerReplica(spec, build, RayDirectory(config.name), clock, pool.drain_s)
    await replica.start()
    print("serving", flush=True)
    try:
        while sys.stdin.fileno() >= 0 and await asyncio.to_thread(sys.stdin.readline):
            pass
    finally:
        await replica.stop()


def main() -> None:
    import ray

    fixed = FixedSpec(**json.loads(sys.argv[1]))
    ray.init(address=fixed.cluster_address, log_to_driver=False, logging_level="ERROR")
    print("joined", flush=True)
    if sys.stdin.readline():
        asyncio.run(_run(fixed))
    ray.shutdown()


if __name__ == "__main__":
    main()
