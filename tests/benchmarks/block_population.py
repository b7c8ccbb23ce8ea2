"""Whose cache holds what, for benchmarks of prefix indexes: prompts that share system prompts, and other blocks.

Standard library only, and the same for the same seed: another index can be filled with it under another interpreter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_TOKENS = 32
PROMPT_TOKENS = 12_000
SYSTEM_TOKENS = 1_920
SYSTEMS = 8
PROMPTS = 400
VOCABULARY = 128_000
FILLER_BLOCKS = 375


@dataclass(frozen=True)
class Population:
    """`held`: worker, which prompt it holds, and how many of its first blocks. `filler`: worker, and blocks that no
    prompt asks for, as a chain from the start of a text."""

    workers: int
    prompts: list[list[int]]
    held: list[tuple[int, int, int]]
    filler_chains: int
    seed: int

    def filler(self) -> Iterator[tuple[int, list[int]]]:
        draw = random.Random(self.seed + 1)
        for i in range(self.filler_chains):
            yield i % self.workers, [draw.getrandbits(64) | 1 for _ in range(FILLER_BLOCKS)]


def populate(workers: int, unique_blocks: int, seed: int) -> Population:
    """Each prompt is held by one to three workers, most of it or part of it; each system prompt by half of them."""
    draw = random.Random(seed)
    systems = [draw.choices(range(VOCABULARY), k=SYSTEM_TOKENS) for _ in range(SYSTEMS)]
    rest = PROMPT_TOKENS - SYSTEM_TOKENS
    prompts = [[*systems[i % SYSTEMS], *draw.choices(range(VOCABULARY), k=rest)] for i in range(PROMPTS)]
    most, system = PROMPT_TOKENS // BLOCK_TOKENS, SYSTEM_TOKENS // BLOCK_TOKENS
    held = [(w, p, system) for w in range(workers) for p in draw.sample(range(SYSTEMS), SYSTEMS // 2)]
    deepest = 0
    for prompt in range(PROMPTS):
        depths = [draw.randint(system, most) for _ in range(draw.randint(1, 3))]
        held += [(draw.randrange(workers), prompt, depth) for depth in depths]
        deepest += max(depths) - system
    known = deepest + SYSTEMS * system
    return Population(workers, prompts, held, (unique_blocks - known) // FILLER_BLOCKS, seed)
