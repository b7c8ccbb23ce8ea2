"""Whether anything grows in a cluster that works without a pause.

    python -m tests.benchmarks.soak [--json] [--minutes N]

One router, one prefill and one decode worker with simulated engines whose steps are short, so that minutes hold as many
requests as an hour of a real cluster; 70 % of what the workers can compute, over HTTP at random times. After a fifth of
the time, when caches and pools have their size, every process of the cluster is looked at, and again at the end: a
look is the median of some at the same phase of the load. `growth`: of the process that grew most, resident memory as a
share, file descriptors and threads as numbers. Processes that only one of the looks saw are listed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import grpc
import psutil

from deploy.demo_model import write_demo_model
from tests.benchmarks.open_load import offer_load
from tests.benchmarks.overload import CAPACITY_RPS, MODEL, PROMPT, TOKEN_S
from tests.benchmarks.streams import random_prompts
from tests.e2e.cluster_status import ClusterStatus
from tests.live_cluster import live_cluster, local_config

LOAD, WARM = 0.7, 0.2
_LOOKS, _BETWEEN_S = 5, 2.0
_PROMPTS = 50_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """Of one process; memory in bytes."""

    resident: float
    descriptors: float
    threads: float


def measure(minutes: float, say: Say) -> dict[str, object]:
    """The benchmark's result object."""
    if not MODEL.is_dir():
        write_demo_model(MODEL)
    simulated = {"prefill_token_s": TOKEN_S, "num_blocks": 2_048}  # full, and evicting, within a minute
    config = local_config(MODEL, "soak", engine={"kind": "simulated", "options": {}, "simulated": simulated})
    with live_cluster(config) as cluster, grpc.insecure_channel(cluster.grpc) as channel:
        requests, failed, before, after = asyncio.run(_work(cluster.http, cluster.pid, 60 * minutes, say))
        ClusterStatus(channel).wait_until_quiet()
    both = before.keys() & after.keys()
    once = {name for look in (before, after) for pid, (name, _) in look.items() if pid not in both}
    return {
        "minutes": minutes,
        "requests": requests,
        "failed": failed,
        "growth": {
            "resident_share": _most(both, lambda pid: after[pid][1].resident / before[pid][1].resident - 1),
            "descriptors": _most(both, lambda pid: after[pid][1].descriptors - before[pid][1].descriptors),
            "threads": _most(both, lambda pid: after[pid][1].threads - before[pid][1].threads),
        },
        "processes": {
            f"{before[pid][0]} {pid}": [round(look[pid][1].resident / 2**20, 1) for look in (before, after)]
            for pid in sorted(both)
        },
        "came_or_went": sorted(once),
    }


Look = dict[int, tuple[str, Size]]


async def _work(url: str, owner: int, seconds: float, say: Say) -> tuple[int, int, Look, Look]:
    prompts = iter(random_prompts(_PROMPTS, PROMPT, 6))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        load = asyncio.create_task(offer_load(session, url, prompts, LOAD * CAPACITY_RPS, seconds))
        await asyncio.sleep(WARM * seconds)
        before = await _look(owner)
        say(f"{len(before)} processes after {WARM * seconds:.0f} s")
        await asyncio.sleep((1 - WARM) * seconds - 2 * _LOOKS * _BETWEEN_S)
        after = await _look(owner)
        answers = await load
    return len(answers), sum(not answer.came_within(float("inf")) for answer in answers), before, after


async def _look(owner: int) -> Look:
    looks: list[dict[int, tuple[str, Size]]] = []
    for _ in range(_LOOKS):
        looks.append({process.pid: (_name(process), _size(process)) for process in _processes(owner)})
        await asyncio.sleep(_BETWEEN_S)
    seen = set.intersection(*(set(look) for look in looks))
    return {pid: (looks[0][pid][0], _median([look[pid][1] for look in looks])) for pid in seen}


def _processes(owner: int) -> list[psutil.Process]:
    return [psutil.Process(owner), *psutil.Process(owner).children(recursive=True)]


def _size(process: psutil.Process) -> Size:
    return Size(process.memory_info().rss, process.num_fds(), process.num_threads())


def _name(process: psutil.Process) -> str:
    """Ray's title, or the program."""
    words = process.cmdline() or [process.name()]
    return words[0].split()[0].rpartition("/")[2] or process.name()


def _median(sizes: list[Size]) -> Size:
    columns = zip(*((size.resident, size.descriptors, size.threads) for size in sizes), strict=True)
    return Size(*(statistics.median(column) for column in columns))


def _most(pids: set[int], growth: Callable[[int], float]) -> float:
    return round(max(growth(pid) for pid in pids), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    say: Say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    print(json.dumps(measure(arguments.minutes, say), indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
