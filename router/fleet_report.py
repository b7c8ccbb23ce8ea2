"""What a router tells the autoscaler: what is asked of it, what waits with it, and every worker as it knows it."""

from __future__ import annotations

import numpy as np

from cluster.scaling.reports import RouterReport, WorkerSight
from router.dispatch import Dispatch
from router.placing import Placing

_TYPICAL_SEQUENCE = 512.0  # tokens, where none runs to tell


def report_of(router_id: str, dispatch: Dispatch) -> RouterReport:
    waiting = dispatch.waiting_prompts()
    arrivals = dispatch.placing.arrivals
    return RouterReport(
        router_id=router_id,
        waiting_requests=len(waiting),
        waiting_tokens=arrivals.to_compute(sum(waiting)),
        in_flight=dispatch.in_flight,
        arrived_requests=arrivals.requests,
        arrived_tokens=arrivals.tokens,
        workers=_workers(dispatch),
    )


def _workers(dispatch: Dispatch) -> tuple[WorkerSight, ...]:
    placing: Placing = dispatch.placing
    loads, latency = placing.placement.loads, placing.placement.latency
    known = [(view, row) for view in dispatch.view if (row := loads.row(view.worker_id)) is not None]
    if not known:
        return ()
    rows = np.array([row for _, row in known], dtype=np.intp)
    there, block_tokens = loads.of(rows), placing.placement.block.tokens
    kv_tokens = there.blocks * block_tokens
    running = there.sequences > 0
    each_kv = np.where(running, kv_tokens / np.maximum(there.sequences, 1.0), _TYPICAL_SEQUENCE)
    none = np.zeros(len(rows))
    step_s = latency.token_s(rows, none, none)
    sequence_s = latency.token_s(rows, np.ones(len(rows)), each_kv) - step_s
    prompt_token_s = placing.prompt_token_s(rows)
    usage = there.blocks / np.maximum(there.num_blocks, 1)
    return tuple(
        WorkerSight(
            worker_id=view.worker_id,
            role=view.role,
            ready=not view.leaving,
            queued_tokens=float(there.prefill_tokens[at]),
            tokens_per_s=float(1.0 / prompt_token_s[at]),
            sequences=float(there.sequences[at]),
            kv_usage=float(usage[at]),
            step_s=float(step_s[at]),
            sequence_s=float(sequence_s[at]),
        )
        for at, (view, _) in enumerate(known)
    )
