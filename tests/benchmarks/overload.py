"""What a cluster that is asked for five times what it can do still does, and how soon it is well again.

    python -m tests.benchmarks.overload [--json] [--seconds N]

One router, one prefill and one decode worker with simulated engines: a prompt of 300 tokens takes 60 ms to compute, so
the cluster can answer somewhat more than 15 a second. Requests come over HTTP at random times, whether or not earlier
ones were answered. Load rises in steps of `--seconds`, then comes at five times the capacity for twice as long, then
at four fifths of it.

`goodput`: requests a second whose first token came within 2.5 s and whose stream came to its end, by offered load as a
part of the capacity. `refused_ms`: how soon the others heard that they were refused. `recovery_s`: from the end of the
overload until the last request that was refused or late. `router_mib`: resident memory of the router's process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable

import aiohttp
import psutil

from deploy.demo_model import write_demo_model
from tests.benchmarks.open_load import Answer, offer_load
from tests.benchmarks.streams import percentiles, random_prompts
from tests.live_cluster import ROOT, live_cluster, local_config

MODEL = ROOT / ".baton/demo-model"
PROMPT = 300
TOKEN_S = 0.0002
CAPACITY_RPS = 1 / (PROMPT * TOKEN_S)
GOOD_S = 2.5
STEPS, OVERLOAD, AFTER = (0.5, 0.8, 1.0, 1.2), 5.0, 0.8
_DEADLINE_S = 60.0
_MIB = float(1 << 20)

Say = Callable[[str], None]


def measure(seconds: float, say: Say) -> dict[str, object]:
    """The benchmark's result object."""
    if not MODEL.is_dir():
        write_demo_model(MODEL)
    config = local_config(
        MODEL,
        "overload",
        engine={"kind": "simulated", "options": {}, "simulated": {"prefill_token_s": TOKEN_S}},
        admission={"worker_queue_s": 0.5, "queue": {"most_wait_s": 1.0}},
    )
    with live_cluster(config) as cluster:
        (router,) = (p for p in psutil.Process(cluster.pid).children(recursive=True) if _is_router(p))
        return asyncio.run(_phases(cluster.http, router, seconds, say))


async def _phases(url: str, router: psutil.Process, seconds: float, say: Say) -> dict[str, object]:
    prompts = iter(random_prompts(20_000, PROMPT, 5))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def offer(load: float, for_s: float) -> list[Answer]:
            answers = await offer_load(session, url, prompts, load * CAPACITY_RPS, for_s)
            good = sum(answer.came_within(GOOD_S) for answer in answers) / for_s
            say(f"{load:g} of the capacity: {len(answers)} requests, {good:.1f} good ones a second")
            return answers

        await offer(STEPS[0], seconds)  # to open connections and meet cold code
        goodput = {f"{load:g}": _rate(await offer(load, seconds), seconds) for load in STEPS}
        memory = {"before": _mib(router)}
        flood, calm = asyncio.create_task(offer(OVERLOAD, 2 * seconds)), asyncio.Event()
        watching = asyncio.create_task(_peak(router, calm))
        # The load falls while the overload's last requests are still under way.
        await asyncio.sleep(2 * seconds)
        ended = time.monotonic()
        after = await offer(AFTER, 2 * seconds)
        answers = await flood
        calm.set()
        memory |= {"peak": await watching, "after": _mib(router)}
    peak = max(goodput.values())
    goodput[f"{OVERLOAD:g}"] = _rate(answers, 2 * seconds)
    late = [answer.at - ended for answer in after if not answer.came_within(GOOD_S)]
    refusals = [answer.end_s for answer in answers if answer.status in (429, 503)]
    failed = [answer for answer in answers if answer.status not in (200, 429, 503)]
    return {
        "capacity_rps": round(CAPACITY_RPS, 2),
        "goodput": goodput,
        "overload_share_of_peak": round(goodput[f"{OVERLOAD:g}"] / peak, 3),
        "refused": len(refusals),
        "failed": len(failed),
        "refused_ms": percentiles(refusals),
        "recovery_s": round(max(late, default=0.0), 2),
        "router_mib": memory,
    }


async def _peak(process: psutil.Process, calm: asyncio.Event) -> float:
    most = _mib(process)
    while not calm.is_set():
        most = max(most, _mib(process))
        await asyncio.sleep(0.25)
    return most


def _is_router(process: psutil.Process) -> bool:
    return process.cmdline()[0].startswith("ray::ServeReplica:baton:router")


def _mib(process: psutil.Process) -> float:
    return round(process.memory_info().rss / _MIB, 1)


def _rate(answers: list[Answer], seconds: float) -> float:
    return round(sum(answer.came_within(GOOD_S) for answer in answers) / seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each step")
    arguments = parser.parse_args()
    say: Say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    print(json.dumps(measure(arguments.seconds, say), indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
