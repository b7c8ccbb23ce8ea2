"""Breaks a cluster in every way, under load, and counts what clients noticed.

    python -m tests.chaos [--json] [--seed N] [--requests N] [--clients N] [--every SECONDS]

Two routers, three prefill and three decode workers with simulated engines, on a real Ray cluster with a real Redis
server. While clients stream over gRPC and HTTP, workers are killed, stopped for a while, restarted at the same address
and drained, lines to them cut and silenced, Redis killed and frozen, and the directory killed, in an order drawn from
the seed. `lost`: streams without all of their tokens; `wrong_tokens`: with others than follow from the prompt, or twice
the same; `hangs`: without an end by their deadline; `leaks`: what is left in routers and workers when all is quiet.
`resume_ms`: of streams that had begun and lost their worker, from the fault to the next token, where both ends notice
the fault at once; `resume_after_silence_ms` where only its silence tells. Exits with 1 if anything was lost, wrong,
hung or left.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from protos.baton.v1 import admin_pb2
from tests.chaos.faults import KINDS, Faults
from tests.chaos.load import Clients, End
from tests.chaos.scene import Scene, scene
from tests.chaos.verdict import result, resumed, slowest
from tests.e2e.cluster_status import left_in

_QUIET_S = 30.0
_CALL_S = 5.0
_BEGAN = time.monotonic()  # what is said has the seconds since then

Say = Callable[[str], None]


async def chaos(seed: int, requests: int, clients: int, every_s: float, say: Say) -> dict[str, object]:
    """The result object."""
    with tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder:
        async with scene(Path(folder)) as made:
            return await break_scene(made, seed, requests, clients, every_s, say)


async def break_scene(
    made: Scene, seed: int, requests: int, clients: int, every_s: float, say: Say
) -> dict[str, object]:
    """Until so many streams have begun and every kind of fault was dealt; ends with all of it well again."""
    load = Clients(made.cluster.http, made.cluster.grpc, seed)
    faults = Faults(made, seed, say)
    streaming = asyncio.create_task(load.run(clients), name="clients")
    await faults.deal(every_s, lambda: len(load.streams) >= requests and len(faults.counts) == len(KINDS))
    load.stop()
    await streaming
    for stream in load.streams:
        if stream.end is not End.WHOLE:
            say(f"{stream.end.value}: {stream.request_id} {len(stream.tokens)}/{stream.wanted} {stream.error}")
    leaks = await asyncio.to_thread(left_behind, made)
    explain, wall_ahead_s = _asking(made), time.time() - time.monotonic()
    moved = await asyncio.to_thread(resumed, load.streams, faults.dealt, explain, wall_ahead_s)
    for line in (*leaks, *faults.failed, *slowest(moved, _BEGAN, explain)):
        say(line)
    return result(seed, load.streams, faults.dealt, moved, [*leaks, *faults.failed])


def _asking(made: Scene) -> Callable[[str], admin_pb2.Explanation]:
    @functools.cache
    def explain(request_id: str) -> admin_pb2.Explanation:
        for admin in made.admins.values():
            try:
                return admin.Explain(admin_pb2.ExplainRequest(request_id=request_id), timeout=_CALL_S)
            except grpc.RpcError:
                continue
        return admin_pb2.Explanation()

    return explain


def left_behind(made: Scene) -> list[str]:
    """What does not go away by itself."""
    give_up = time.monotonic() + _QUIET_S
    while (left := _look(made)) and time.monotonic() < give_up:
        time.sleep(0.2)
    return left


def _look(made: Scene) -> list[str]:
    return [what for router_id in made.admins for what in left_in(made.status(router_id))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=5_000, help="how many streams at least")
    parser.add_argument("--clients", type=int, default=40, help="streams at a time")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between faults, on average")
    arguments = parser.parse_args()
    say: Say = lambda line: print(f"{time.monotonic() - _BEGAN:7.1f} {line}", file=sys.stderr, flush=True)  # noqa: E731
    told = asyncio.run(chaos(arguments.seed, arguments.requests, arguments.clients, arguments.every, say))
    print(json.dumps(told, indent=None if arguments.json else 2))
    sys.exit(any(told[key] for key in ("lost", "wrong_tokens", "hangs", "leaks")))


if __name__ == "__main__":
    main()
