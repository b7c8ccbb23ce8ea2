"""What a worker's description says, as samples: the same ones through Ray's agent and on a router's page.

The numbers are those of `baton status`; nothing is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster import metrics_table as table
from cluster.metrics import Sample
from cluster.metrics_table import known
from cluster.wire import role_from_wire
from protos.baton.v1 import worker_pb2

_STATES = {
    state: name.removeprefix("WORKER_STATE_").lower()
    for name, state in worker_pb2.WorkerState.items()
    if state != worker_pb2.WORKER_STATE_UNSPECIFIED
}


def worker_samples(worker: worker_pb2.WorkerDescription) -> Iterator[Sample]:
    """Raises `InvalidRequest` for a role that is not a pool's."""
    who = role_from_wire(worker.role).value, worker.worker_id
    load, counters = worker.load, worker.counters
    yield Sample(table.WORKER_UP, who, 1.0)
    for state, name in _STATES.items():
        yield Sample(table.WORKER_STATE, (*who, name), float(state == worker.state))
    for metric, value in (
        (table.WORKER_RUNNING, load.running),
        (table.WORKER_WAITING, load.waiting),
        (table.WORKER_QUEUED_TOKENS, load.queued_prefill_tokens),
        (table.KV_USAGE, load.kv_usage),
        (table.KV_BLOCKS, worker.num_blocks),
        (table.PINNED, counters.pinned_blocks),
        (table.LEASES, load.leases),
        (table.RECOMPUTED, counters.recomputed_requests),
        (table.BLOCKS_SENT, counters.blocks_sent),
        (table.BYTES_SENT, counters.bytes_sent),
    ):
        yield Sample(metric, who, float(value))
    yield from _by_label(who, counters)
    yield from _transfers(who, counters)


def _by_label(who: tuple[str, str], counters: worker_pb2.Counters) -> Iterator[Sample]:
    attempts: dict[str, int] = {}
    for outcome, count in counters.attempts_by_outcome.items():
        attempts[known("outcome", outcome)] = attempts.get(known("outcome", outcome), 0) + count
    for outcome, count in attempts.items():
        yield Sample(table.ATTEMPTS, (*who, outcome), float(count))
    events = {
        "offered": counters.leases_offered,
        "released": counters.leases_released,
        "expired": counters.leases_expired,
    }
    for event, count in events.items():
        yield Sample(table.LEASE_EVENTS, (*who, event), float(count))


def _transfers(who: tuple[str, str], counters: worker_pb2.Counters) -> Iterator[Sample]:
    sums: dict[tuple[str, str], list[float]] = {}
    for each in counters.transfers:
        key = known("transport", each.transport), known("outcome", each.outcome)
        so_far = sums.setdefault(key, [0.0, 0.0, 0.0, 0.0])
        for place, value in enumerate((each.count, each.blocks, each.bytes, each.seconds)):
            so_far[place] += value
    columns = table.KV_TRANSFERS, table.KV_BLOCKS_PULLED, table.KV_BYTES_PULLED, table.KV_SECONDS
    for key, values in sums.items():
        for metric, value in zip(columns, values, strict=True):
            yield Sample(metric, (*who, *key), value)
