"""Run as a program: the router under Ray Serve behind HAProxy, with scripted workers in this process.

Arguments: model directory, HTTP port, gRPC port. Prints one JSON line when it serves. Each line it reads is a number:
once so many attempts have been aborted at decode, it answers with what its workers have seen. Ends with its standard
input. A process of its own: Ray reads its environment once, and the tests' process must stay without it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.clock import RealClock
from cluster.config import parse_config
from cluster.engine import Role
from cluster.membership import WORKER_TTL_S, announce_until_cancelled
from deploy.proxy_environment import own_proxy
from tests.ray_cluster import start_small_ray
from tests.router.scripted_worker import LeaseBook, ScriptedWorker


def set_environment(scratch: Path) -> None:
    """HAProxy's files and ports are apart from those of any other Ray on this machine."""
    os.environ.update(
        {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            **own_proxy(scratch),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_AUTO_CONNECT": "0",
            "BATON_TICKET_SECRET": "a secret that only the tests know",
        }
    )


def tell(content: object) -> None:
    print(json.dumps(content), flush=True)


async def main(model: str, http_port: int, grpc_port: int) -> None:
    import ray
    from ray import serve

    from cluster.directory import RayDirectory
    from router.deployment import deployment

    raw = {
        "name": "router-test",
        "model": {"path": model, "max_model_len": 512},
        "placement": {"disaggregate": "always"},
        "router": {"http_port": http_port, "grpc_port": grpc_port, "request_deadline_s": 30.0, "max_in_flight": 64},
    }
    config = parse_config(raw)
    start_small_ray(config.name, cpus=2)
    logging.basicConfig(level=logging.WARNING)
    leases, directory = LeaseBook(), RayDirectory(config.name)
    workers = [ScriptedWorker("p", Role.PREFILL, leases), ScriptedWorker("d", Role.DECODE, leases)]
    announcing = []
    for worker in workers:
        record = await worker.start()
        announcing.append(asyncio.create_task(announce_until_cancelled(directory, record, WORKER_TTL_S, RealClock())))
    workers[1].free_tokens = 10
    workers[1].gate.clear()  # long answers stop after ten tokens of decode, until someone hangs up
    serve.start(http_options={"host": "127.0.0.1", "port": http_port})
    await asyncio.to_thread(serve.run, deployment(config), name="baton", route_prefix="/")
    tell({"ready": True})
    async for aborts in lines():
        await workers[1].until(lambda wanted=int(aborts): len(workers[1].aborted) >= wanted)  # type: ignore[misc]
        tell(
            {
                "submits": [len(worker.submits) for worker in workers],
                "aborted": [len(worker.aborted) for worker in workers],
                "live_leases": len(leases.live),
            }
        )
    await asyncio.to_thread(serve.shutdown)
    for task in announcing:
        task.cancel()
    for worker in workers:
        await worker.stop()
    ray.shutdown()


async def lines() -> AsyncIterator[str]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


if __name__ == "__main__":
    # Short, because the path of a socket has a limit that pytest's own folders come too close to.
    with tempfile.TemporaryDirectory(prefix="baton-") as scratch:
        set_environment(Path(scratch))
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
