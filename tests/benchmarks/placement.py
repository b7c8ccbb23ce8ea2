"""What a placement decision costs: hash a prompt of 12,000 tokens, look it up, predict every worker's time, pick one.

    python -m tests.benchmarks.placement [--json] [--rounds N] [--decisions N] [--rust-python INTERPRETER]

One million unique blocks are known, on 64 and on 1,000 workers, half of each pool. `index_us` is hashing and looking up
alone. INTERPRETER is a Python that has `ai-dynamo-runtime`: its Rust index then holds the same blocks, hashes and looks
up the same prompts, in turns with ours (`rust_index_us`). `rebuild`: all blocks of 64 workers with 15,000 each, from
their snapshots. Wall time; on a busy machine compare numbers of one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.block_hashes import chain_seed, extend_chain
from cluster.config_placement import PlacementConfig
from cluster.engine import Role
from router.predicted_placement import BlockShape, Demand, Placement
from router.prefix_index import PrefixIndex
from router.worker_loads import Load, WorkerFacts
from tests.benchmarks.block_population import BLOCK_TOKENS, PROMPT_TOKENS, Population, populate
from tests.live_cluster import ROOT

UNIQUE_BLOCKS = 1_000_000
WORKERS = (64, 1_000)
SNAPSHOT_BLOCKS, MESSAGE_BLOCKS = 15_000, 4_096
SEED = 7
CHAIN = chain_seed("model", "", "")

Samples = dict[str, list[float]]  # microseconds by stage
Say = Callable[[str], None]


class Arm:
    """One size of cluster, filled and loaded. A round of it adds samples."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.population = populate(workers, UNIQUE_BLOCKS, SEED)
        self.samples: Samples = defaultdict(list)
        self.placement = _placement(self.population)
        self._draw = random.Random(SEED)
        self._turn = 0

    def run(self, decisions: int) -> None:
        """Whole decisions and bare look-ups in turns, so that neither finds the other's prompt in the caches."""
        for _ in range(decisions):
            self._decide(self._next_prompt())
            self._look_up(self._next_prompt())

    def _next_prompt(self) -> list[int]:
        self._turn += 1
        return self.population.prompts[self._turn % len(self.population.prompts)]

    def _decide(self, prompt: list[int]) -> None:
        started = time.perf_counter_ns()
        hashes = extend_chain(CHAIN, prompt, BLOCK_TOKENS)
        decision = self.placement.first(Demand(hashes, len(prompt), 256), 0.0, self._draw)
        self.samples["decision"].append((time.perf_counter_ns() - started) / 1e3)
        assert decision is not None

    def _look_up(self, prompt: list[int]) -> None:
        started = time.perf_counter_ns()
        hashes = extend_chain(CHAIN, prompt, BLOCK_TOKENS)
        hashed = time.perf_counter_ns()
        self.placement.index.match(hashes)
        self.samples["index"].append((time.perf_counter_ns() - started) / 1e3)
        self.samples["hash"].append((hashed - started) / 1e3)

    def summary(self) -> dict[str, object]:
        decision = self.samples["decision"]
        return {
            "decision_us": _percentiles(decision),
            "index_us": _percentiles(self.samples["index"]),
            "hash_us": _percentiles(self.samples["hash"]),
            "bytes_per_block": round(_bytes_per_block(self.population), 1),
            "decisions_per_s": round(1e6 * len(decision) / sum(decision)),
        }


def measure(rounds: int, decisions: int, rust_python: str | None, say: Say) -> dict[str, object]:
    """The benchmark's result object; see the module docstring."""
    arms = []
    for workers in WORKERS:
        say(f"filling the index of {workers} workers")
        arms.append(Arm(workers))
    rust: list[float] = []
    with _rust_index(rust_python, say) as look_up:
        for turn in range(rounds):
            say(f"round {turn + 1}/{rounds}")
            gc.collect()
            for arm in arms:
                arm.run(decisions)
            rust += look_up(decisions)
    result: dict[str, object] = {"workers": {str(arm.workers): arm.summary() for arm in arms}}
    if rust:
        result["rust_index_us"] = _percentiles(rust)
    result["rebuild"] = _rebuild()
    return result | {"rounds": rounds, "unique_blocks": len(arms[0].placement.index), "prompt_tokens": PROMPT_TOKENS}


def _placement(population: Population) -> Placement:
    """Workers of both pools with some load, and their blocks."""
    draw = random.Random(SEED)
    config = PlacementConfig(index_blocks=UNIQUE_BLOCKS)
    placement = Placement(config, BlockShape(BLOCK_TOKENS, 1 << 20))
    for worker in range(population.workers):
        role = Role.PREFILL if worker % 2 else Role.DECODE
        placement.worker_up(WorkerFacts(str(worker), role, 2 * UNIQUE_BLOCKS // population.workers + 20_000))
        load = Load(draw.randrange(20_000) * (worker % 2), draw.randrange(64), draw.randrange(15_000))
        placement.loads.report(str(worker), load)
    _fill(placement.index, population)
    return placement


def _fill(index: PrefixIndex, population: Population) -> None:
    hashes = [extend_chain(CHAIN, prompt, BLOCK_TOKENS) for prompt in population.prompts]
    for worker, prompt, depth in population.held:
        index.blocks_stored(str(worker), hashes[prompt][:depth])
    for worker, blocks in population.filler():
        index.blocks_stored(str(worker), blocks)


def _bytes_per_block(population: Population) -> float:
    """All memory that a filled index takes, as Python counts it."""
    gc.collect()
    tracemalloc.start()
    try:
        index = PrefixIndex(UNIQUE_BLOCKS, guess_s=30.0)
        for worker in range(population.workers):
            index.add(str(worker), worker, 2 * UNIQUE_BLOCKS)
        _fill(index, population)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(index)
    finally:
        tracemalloc.stop()


def _rebuild() -> dict[str, float]:
    """What a router that comes back needs to know all blocks of 64 full workers again, and for how long one message of
    a snapshot keeps it from its requests."""
    draw = random.Random(SEED)
    snapshots = [[draw.getrandbits(64) for _ in range(SNAPSHOT_BLOCKS)] for _ in range(WORKERS[0])]
    index, steps = PrefixIndex(UNIQUE_BLOCKS, guess_s=30.0), []
    for worker, blocks in enumerate(snapshots):
        index.add(str(worker), worker, SNAPSHOT_BLOCKS)
        for start in range(0, SNAPSHOT_BLOCKS, MESSAGE_BLOCKS):
            part = blocks[start : start + MESSAGE_BLOCKS]
            started = time.perf_counter()
            index.blocks_stored(str(worker), part)
            steps.append(time.perf_counter() - started)
    index.check_integrity({str(worker): blocks for worker, blocks in enumerate(snapshots)})
    return {"seconds": round(sum(steps), 2), "longest_step_ms": round(1e3 * max(steps), 2)}


@contextmanager
def _rust_index(python: str | None, say: Say) -> Iterator[Callable[[int], list[float]]]:
    """A function that looks up so many prompts and gives the microseconds of each; none without an interpreter."""
    if python is None:
        yield lambda _: []
        return
    say("filling the Rust index")
    command = [python, "-m", "tests.benchmarks.rust_index"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        requests, answers = other.stdin, other.stdout

        def ask(line: str) -> str:
            requests.write(line + "\n")
            requests.flush()
            if not (answer := answers.readline()):
                raise RuntimeError(f"{python} -m tests.benchmarks.rust_index ended: see above")
            return answer

        ask(json.dumps({"workers": WORKERS[0], "unique_blocks": UNIQUE_BLOCKS, "seed": SEED}))
        yield lambda count: json.loads(ask(str(count)))
        requests.close()


def _percentiles(samples: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(samples, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decisions", type=int, default=1_000, help="of each arm in each round")
    parser.add_argument("--rust-python", help="a Python that has ai-dynamo-runtime")
    arguments = parser.parse_args()
    result = measure(
        arguments.rounds,
        arguments.decisions,
        arguments.rust_python,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
