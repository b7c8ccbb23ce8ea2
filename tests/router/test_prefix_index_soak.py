"""A thousand prompts through workers that evict, restart and are watched anew: the index equals what each holds."""

from __future__ import annotations

import random
from collections import OrderedDict

from cluster.block_hashes import chain_seed, extend_chain
from router.prefix_index import PrefixIndex

POOL = 600
WORKERS = 12
SEED = chain_seed("model", "", "")


class CachingWorker:
    """Keeps the blocks it used last and tells the index what comes and goes."""

    def __init__(self, name: str, index: PrefixIndex) -> None:
        self.name = name
        self.index = index
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def run(self, hashes: list[int]) -> None:
        for block in hashes:
            if block in self.blocks:
                self.blocks.move_to_end(block)
        new = [block for block in hashes if block not in self.blocks]
        over = max(0, len(self.blocks) + len(new) - POOL)
        self.index.blocks_removed(self.name, [self.blocks.popitem(last=False)[0] for _ in range(over)])
        self.index.blocks_stored(self.name, new)
        self.blocks |= dict.fromkeys(new)

    def restart(self) -> None:
        self.blocks.clear()
        self.index.worker_gone(self.name)
        self.index.add(self.name, int(self.name), POOL)

    def tell_all(self, size: int) -> None:
        held = list(self.blocks)
        self.index.blocks_cleared(self.name)
        for start in range(0, len(held), size):
            self.index.blocks_stored(self.name, held[start : start + size])


def conversations(draw: random.Random, count: int) -> list[list[int]]:
    """Block names of prompts that grow turn by turn from one of four beginnings."""
    beginnings = [draw.choices(range(1_000), k=320) for _ in range(4)]
    texts: list[list[int]] = []
    for _ in range(count):
        last = draw.choice(texts) if texts and draw.random() < 0.7 else draw.choice(beginnings)
        texts.append([*last, *draw.choices(range(1_000), k=draw.randrange(160))][:4_000])
    return [extend_chain(SEED, text, 16) for text in texts]


def leading(hashes: list[int], worker: CachingWorker) -> int:
    return next((i for i, block in enumerate(hashes) if block not in worker.blocks), len(hashes))


def test_the_index_equals_what_every_worker_holds_through_evictions_restarts_and_new_snapshots() -> None:
    draw, index = random.Random(11), PrefixIndex(WORKERS * POOL, guess_s=10.0)
    workers = [CachingWorker(str(row), index) for row in range(WORKERS)]
    for row in range(WORKERS):
        index.add(str(row), row, POOL)
    for turn, hashes in enumerate(conversations(draw, 1_000)):
        held = [leading(hashes, worker) for worker in workers]
        assert index.match(hashes).tolist() == held
        worker = draw.choice(workers) if draw.random() < 0.3 else workers[held.index(max(held))]
        worker.run(hashes)
        if turn % 100 == 50:
            draw.choice(workers).restart()
        if turn % 40 == 20:
            draw.choice(workers).tell_all(size=draw.choice([3, 100, 4_096]))
        index.sweep()
    assert index.evicted == 0
    assert not index.suspects
    while index.sweep():
        pass
    index.check_integrity({worker.name: worker.blocks for worker in workers})
    assert len(index) == len(set().union(*(worker.blocks for worker in workers)))
