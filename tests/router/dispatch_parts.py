"""What a dispatch needs beside workers, for tests: placement over blocks of 16 tokens, and a journal that keeps all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cluster.config import RouterConfig
from cluster.config_placement import PlacementConfig
from router.dispatch import DispatchParts
from router.gate import Gate
from router.handover_rules import DEFAULT_RULES, HandoverRules
from router.journal import Journal
from router.placing import PlacementSetup, Placing
from router.request_journal import RequestJournal
from router.shared_loads import ALONE, SharedLoads
from router.worker_loads import Load

MODEL, BLOCK_TOKENS = "demo", 16
RETURN_S = RouterConfig().worker_deadline_s
"""How long a request that has lost its last worker waits for one to come back."""


def parts(
    now: Callable[[], float],
    rules: HandoverRules = DEFAULT_RULES,
    seed: int = 1,
    journal: Journal | None = None,
    gate: Gate | None = None,
    shared: SharedLoads = ALONE,
    prefill_may_decode: bool = True,
    **placement: object,
) -> DispatchParts:
    """`placement`: keys of its section. Prefill is apart from decode unless they say otherwise."""
    config = PlacementConfig.model_validate({"disaggregate": "always"} | placement)
    setup = PlacementSetup(config, MODEL, BLOCK_TOKENS, 64 << 20, prefill_may_decode)
    placing = Placing(setup, now, seed, shared)
    written = RequestJournal(new_journal() if journal is None else journal, now, lambda: 1_700_000_000.0)
    return DispatchParts(placing, written, rules, gate)


def new_journal() -> Journal:
    async def nowhere(_: str) -> bytes | None:
        return None

    return Journal("router-1", 100, lambda *_: None, nowhere)


def load_of(parts: DispatchParts, worker_id: str) -> Load:
    """What placement believes of a worker that is up."""
    loads = parts.placing.placement.loads
    row = loads.row(worker_id)
    assert row is not None
    there = loads.of(np.array([row]))
    return Load(there.prefill_tokens.item(), there.sequences.item(), there.blocks.item())
