"""Whether anything grows in a cluster that works without a pause.

    python -m tests.benchmarks.soak [--json] [--minutes N]

One router, one prefill and one decode worker with simulated engines whose steps are short, so that minutes hold as many
requests as an hour of a real cluster; 70 % of what the workers can compute, over HTTP at random times. Whatever keeps a
number of the last things (blocks, their index, the journal's records) is given a size that is reached in the first
fifth of the time. Every process of the cluster is looked at after each fifth: a look is the median of some at the same
phase of the load. `growth`: from the first look to the last, the most that any one process grew: resident memory as a
share, file descriptors and threads as numbers, each with the process. Processes that not all looks saw are listed.
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

LOAD, PARTS = 0.7, 5
_LOOKS, _BETWEEN_S = 5, 2.0
_PROMPTS = 50_000
_JOURNAL = 500
_INDEX = 8_192  # blocks, of about 4,000 that the workers hold: its table is one array, resident as it is touched
_MIB = 2**20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """Of one process; memory in bytes."""

    resident: float
    descriptors: float
    threads: float


Look = dict[int, tuple[str, Size]]


def measure(minutes: float, say: Say) -> dict[str, object]:
    """The benchmark's result object."""
    if not MODEL.is_dir():
        write_demo_model(MODEL)
    simulated = {"prefill_token_s": TOKEN_S, "num_blocks": 2_048}  # full, and evicting, within a minute
    engine = {"kind": "simulated", "options": {}, "simulated": simulated}
    config = local_config(MODEL, "soak", engine=engine, store={"journal_records": _JOURNAL})
    config["placement"]["index_blocks"] = _INDEX
    with live_cluster(config) as cluster, grpc.insecure_channel(cluster.grpc) as channel:
        requests, failed, looks = asyncio.run(_work(cluster.http, cluster.pid, 60 * minutes, say))
        ClusterStatus(channel).wait_until_quiet()
    always = set[int].intersection(*(set(look) for look in looks))
    once = {name for look in looks for pid, (name, _) in look.items() if pid not in always}
    return {
        "minutes": minutes,
        "requests": requests,
        "failed": failed,
        "growth": {
            "resident_share": _most(looks, always, lambda first, last: last.resident / first.resident - 1),
            "descriptors": _most(looks, always, lambda first, last: last.descriptors - first.descriptors),
            "threads": _most(looks, always, lambda first, last: last.threads - first.threads),
        },
        "resident_mib": {
            f"{looks[0][pid][0]} {pid}": [round(look[pid][1].resident / _MIB, 1) for look in looks]
            for pid in sorted(always)
        },
        "came_or_went": sorted(once),
    }


async def _work(url: str, owner: int, seconds: float, say: Say) -> tuple[int, int, list[Look]]:
    """How many requests were made, how many failed, and a look after each part of the time."""
    prompts = iter(random_prompts(_PROMPTS, PROMPT, 6))
    looks: list[Look] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        load = asyncio.create_task(offer_load(session, url, prompts, LOAD * CAPACITY_RPS, seconds))
        for part in range(PARTS):
            await asyncio.sleep(seconds / PARTS - _LOOKS * _BETWEEN_S)
            looks.append(await _look(owner))
            say(f"{len(looks[-1])} processes after {(part + 1) * seconds / PARTS:.0f} s")
        answers = await load
    return len(answers), sum(not answer.came_within(float("inf")) for answer in answers), looks


async def _look(owner: int) -> Look:
    """Takes `_LOOKS` times `_BETWEEN_S`."""
    looks: list[Look] = []
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


def _most(looks: list[Look], pids: set[int], growth: Callable[[Size, Size], float]) -> dict[str, object]:
    first, last = looks[0], looks[-1]
    grown = {pid: growth(first[pid][1], last[pid][1]) for pid in pids}
    pid = max(grown, key=lambda pid: grown[pid])
    return {"most": round(grown[pid], 4), "process": f"{first[pid][0]} {pid}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    say: Say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    print(json.dumps(measure(arguments.minutes, say), indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
