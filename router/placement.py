"""Which worker gets an attempt: filter by role and exclusions, score by load, pick the best, break ties by a draw.

Pure functions of a fleet view; callers reserve what they were given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from cluster.engine import Role
from router.fleet_view import FleetView, WorkerView

Scores = Callable[[Sequence[WorkerView]], list[float]]


def place(
    view: FleetView, role: Role, avoid: frozenset[str], draw: random.Random, prefer: str | None = None
) -> str | None:
    """Of the ready workers of `role` outside `avoid` the preferred one, else the least loaded; None when there is none.
    Leaves the view as it is."""
    candidates = [worker for worker in view.ready(role) if worker.worker_id not in avoid]
    if not candidates:
        return None
    if any(worker.worker_id == prefer for worker in candidates):
        return prefer
    scores = _SCORES[role](candidates)
    best = max(scores)
    return draw.choice([worker.worker_id for worker, score in zip(candidates, scores, strict=True) if score == best])


def short_queues(candidates: Sequence[WorkerView]) -> list[float]:
    """1 for no prompt token waiting, 0 for the longest queue among the candidates."""
    longest = max(worker.queued_prefill_tokens for worker in candidates) or 1
    return [1.0 - worker.queued_prefill_tokens / longest for worker in candidates]


def free_seats(candidates: Sequence[WorkerView]) -> list[float]:
    """Half for few sequences, compared with the busiest candidate, half for free KV blocks."""
    busiest = max(worker.running for worker in candidates) or 1
    return [1.0 - worker.running / busiest / 2 - min(worker.kv_usage, 1.0) / 2 for worker in candidates]


_SCORES: dict[Role, Scores] = {Role.PREFILL: short_queues, Role.DECODE: free_seats}
