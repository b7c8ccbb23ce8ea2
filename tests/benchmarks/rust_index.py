"""The other side of the placement benchmark: the Rust prefix index of `ai-dynamo-runtime`, filled with the same blocks.

Runs under an interpreter that has that package; needs nothing else but the standard library. Reads the population's
parameters as one JSON line, then answers each further line, a number of look-ups, with their durations.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

from tests.benchmarks.block_population import BLOCK_TOKENS, Population, populate


def main() -> None:
    from dynamo.llm import RadixTree, compute_block_hash_for_seq  # type: ignore[import-not-found]

    population = populate(**json.loads(sys.stdin.readline()))
    tree = RadixTree()
    _fill(tree, population, [compute_block_hash_for_seq(prompt, BLOCK_TOKENS) for prompt in population.prompts])
    print("ready", flush=True)
    prompts = itertools.cycle(population.prompts)
    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            prompt = next(prompts)
            started = time.perf_counter_ns()
            tree.find_matches(compute_block_hash_for_seq(prompt, BLOCK_TOKENS)).scores  # noqa: B018
            took.append((time.perf_counter_ns() - started) / 1e3)
        print(json.dumps(took), flush=True)


def _fill(tree: Any, population: Population, hashes: list[list[int]]) -> None:
    numbers = itertools.count()
    for worker, prompt, depth in population.held:
        _store(tree, next(numbers), worker, hashes[prompt][:depth])
    for worker, blocks in population.filler():
        _store(tree, next(numbers), worker, blocks)


def _store(tree: Any, number: int, worker: int, hashes: list[int]) -> None:
    """Names of blocks in the engine's events cover what came before; those of the look-up do not."""
    names = itertools.accumulate(hashes, lambda before, block: hash((before, block)) & (2**64 - 1))
    blocks = [{"block_hash": name, "tokens_hash": block} for name, block in zip(names, hashes, strict=True)]
    event = {"event_id": number, "data": {"stored": {"parent_hash": None, "blocks": blocks}}}
    tree.apply_event(worker, json.dumps(event).encode())


if __name__ == "__main__":
    main()
