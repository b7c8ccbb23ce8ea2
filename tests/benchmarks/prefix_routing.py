"""How much of its past a conversation finds again, and how well the router foresaw that and the time it takes.

    python -m tests.benchmarks.prefix_routing [--json] [--seed N] [--disaggregate always|auto]

Two prefill and two decode workers with real engines, the demo model in bf16 (2 KiB of KV a token). 40 conversations of
8 turns on 4 streams: an opening of about 1,000 tokens, then about 100 tokens a turn and 16 of answer; 0.1 to 0.5 s
after an answer the next user of the stream speaks. Two arms, one cluster after the other, with the same conversations:
workers picked by predicted time, and round robin.

The setting is the one where it matters: at their end, the conversations fill a worker's cache 1.8 times, so two caches
hold them all and one does not. Round robin shows every conversation to both workers; with room for everything it would
find 75 %, because in turn 8 a worker still has what it saw in turn 7 or 6. The conversations of a stream speak in an
order drawn for every turn, so that no number of them keeps round robin in step.

`hit_share`: of the full blocks said and answered in earlier turns, those that the engine says it took from its cache.
`hits_error`: of each request, the difference between the cached tokens predicted and found, over all found.
`ttft_error_median`: of |predicted / actual - 1|, both by the router, from arrival to first token. A few requests come
before, of other conversations, to open connections and meet cold code; they are not counted, but learnt from.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from deploy.demo_model import write_demo_model
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, worker_pb2
from tests.benchmarks.conversations import Shape, Turn, converse, hit_share
from tests.live_cluster import ROOT, LiveCluster, live_cluster, local_config

SHAPE = Shape(40, turns=8, streams=4, opening=(900, 1_100), turn=(80, 120), answer=16, pause_s=(0.1, 0.5))
WARM_UP = Shape(8, turns=2, streams=4, opening=(200, 400), turn=(80, 120), answer=16, pause_s=(0.1, 0.5))
BLOCK, CACHE_MIB = 32, 80
PICKS = {"predicted": "predicted", "round_robin": "round-robin"}
MODEL = ROOT / ".baton/demo-model"
_CALL_S = 10.0

Say = Callable[[str], None]


def measure(seed: int, disaggregate: str, say: Say) -> dict[str, object]:
    """The benchmark's result object."""
    if not MODEL.is_dir():
        write_demo_model(MODEL)
    arms: dict[str, dict[str, object]] = {}
    for arm, pick in PICKS.items():
        say(f"starting {arm}")
        with live_cluster(_config(MODEL, pick, disaggregate)) as cluster:
            arms[arm] = _arm(cluster, seed)
        say(f"{arm}: {arms[arm]}")
    return {"arms": arms, "turns": SHAPE.turns, "conversations": SHAPE.conversations}


def _config(model: Path, pick: str, disaggregate: str) -> dict[str, object]:
    return local_config(
        model,
        "prefix-routing",
        prefill={"replicas": 2, "cpus_per_replica": 0.5},
        decode={"replicas": 2, "cpus_per_replica": 0.5},
        engine={"kv_cache_mib": CACHE_MIB},
        placement={"pick": pick, "disaggregate": disaggregate},
    )


def _arm(cluster: LiveCluster, seed: int) -> dict[str, object]:
    asyncio.run(converse(cluster.http, WARM_UP, seed + 1_000))
    turns = asyncio.run(converse(cluster.http, SHAPE, seed))
    with grpc.insecure_channel(cluster.grpc) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        told = [_explained(admin, turn.request_id) for turn in turns]
        return figures(turns, told) | {"conversations_per_cache": round(SHAPE.mean_tokens / _cache_tokens(admin), 2)}


def figures(turns: Sequence[Turn], told: Sequence[admin_pb2.Explanation]) -> dict[str, object]:
    """`told`: of the same requests, in the same order."""
    predicted = [each.cached_tokens_predicted // BLOCK for each in told]
    actual = [each.cached_tokens_actual // BLOCK for each in told]
    apart = sum(abs(p - a) for p, a in zip(predicted, actual, strict=True))
    ttft_errors = [abs(each.predicted.ttft_s / each.actual.ttft_s - 1) for each in told]
    cuts = statistics.quantiles((1_000 * turn.ttft_s for turn in turns), n=100)
    return {
        "hit_share": round(hit_share(turns, BLOCK), 4),
        "predicted_hits": sum(predicted),
        "actual_hits": sum(actual),
        "hits_error": round(apart / max(sum(actual), 1), 4),
        "ttft_error_median": round(statistics.median(ttft_errors), 4),
        "ttft_ms": {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)},
    }


def _explained(admin: admin_pb2_grpc.AdminStub, request_id: str) -> admin_pb2.Explanation:
    told: admin_pb2.Explanation = admin.Explain(admin_pb2.ExplainRequest(request_id=request_id), timeout=_CALL_S)
    return told


def _cache_tokens(admin: admin_pb2_grpc.AdminStub) -> int:
    """Of one prefill worker."""
    status = admin.Status(admin_pb2.StatusRequest(), timeout=_CALL_S)
    workers = [worker.description for worker in status.workers]
    return min(w.num_blocks * w.block_size for w in workers if w.role == worker_pb2.ROLE_PREFILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disaggregate", choices=("always", "auto"), default="always")
    arguments = parser.parse_args()
    say: Say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    result = measure(arguments.seed, arguments.disaggregate, say)
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
