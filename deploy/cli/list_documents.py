"""The answers of `Admin`'s lists as the items that `baton get` prints: stable keys, seconds and bytes throughout.

Knows the protocol's messages; knows nothing of channels or of how an item is written.
"""

from __future__ import annotations

from deploy.cli.document_part import Moment, Part
from deploy.cli.status_document import role_name
from protos.baton.v1 import admin_pb2


class RequestItem(Part):
    """`state`: "running", or how it ended. Both workers are the same where one had the whole request. None: not known,
    or there was none."""

    id: str
    state: str
    tenant: str
    priority: str
    session: str
    arrived_at: Moment
    duration_s: float
    queued_s: float
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    ttft_s: float | None
    itl_s: float | None
    prefill_worker: str
    decode_worker: str
    attempts: int
    error: str


class LeaseItem(Part):
    """`id`: a short name made from the lease's own. `worker` holds the blocks, in `epoch` (text: it does not fit the
    integers of JSON readers); `reader` is the engine that reads them, empty while none does. `left_s`: until it ends,
    if it is not renewed."""

    id: str
    worker: str
    pool: str
    epoch: str
    state: str
    reader: str
    blocks: int
    age_s: float
    left_s: float
    growing: bool


class EventItem(Part):
    """`event`: what kind it is; `request`: the id of the one that it concerns."""

    number: int
    at: Moment
    event: str
    worker: str
    pool: str
    reason: str
    request: str


class WorkerCacheItem(Part):
    """`kv_usage`: share of its blocks that running requests use; `held_blocks` can be found by later prompts."""

    worker: str
    pool: str
    held_blocks: int
    num_blocks: int
    block_tokens: int
    kv_usage: float


class CacheDocument(Part):
    """Tokens of prompts since the router's start: `cached` were found by the worker that computed the prompt,
    `predicted` had been expected there. `hit_rate` is None before the first answer."""

    api_version: str = "baton/v1"
    kind: str = "CacheStats"
    router: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    predicted_tokens: int
    hit_rate: float | None
    index_blocks: int
    index_capacity: int
    index_evicted: int
    workers: list[WorkerCacheItem]


class FlushItem(Part):
    """`reason`: why it was not flushed."""

    worker: str
    pool: str
    flushed: bool
    reason: str


def request_item(answer: admin_pb2.RequestSummary) -> RequestItem:
    timing = answer.actual
    return RequestItem(
        id=answer.request_id,
        state=answer.state,
        tenant=answer.tenant,
        priority=answer.priority,
        session=answer.session_id,
        arrived_at=answer.arrived_unix_s,
        duration_s=round(answer.duration_s, 6),
        queued_s=round(answer.queued_s, 6),
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens if answer.HasField("cached_tokens") else None,
        output_tokens=answer.output_tokens,
        ttft_s=round(timing.ttft_s, 6) if timing.HasField("ttft_s") else None,
        itl_s=round(timing.itl_s, 6) if timing.HasField("itl_s") else None,
        prefill_worker=answer.prefill_worker,
        decode_worker=answer.decode_worker,
        attempts=answer.attempts,
        error=answer.error,
    )


def lease_items(answer: admin_pb2.WorkerLeases) -> list[LeaseItem]:
    return [
        LeaseItem(
            id=lease.lease,
            worker=answer.worker_id,
            pool=role_name(answer.role),
            epoch=str(answer.epoch),
            state=lease.state,
            reader=lease.reader_id,
            blocks=lease.blocks,
            age_s=round(lease.age_s, 3),
            left_s=round(lease.left_s, 3),
            growing=lease.growing,
        )
        for lease in answer.leases
    ]


def event_item(answer: admin_pb2.FleetEvent) -> EventItem:
    return EventItem(
        number=answer.number,
        at=answer.at_unix_s,
        event=answer.kind,
        worker=answer.worker_id,
        pool=role_name(answer.role) if answer.role else "",
        reason=answer.reason,
        request=answer.request_id,
    )


def cache_document(answer: admin_pb2.CacheResponse) -> CacheDocument:
    return CacheDocument(
        router=answer.router_id,
        requests=answer.requests,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        predicted_tokens=answer.predicted_tokens,
        hit_rate=round(answer.cached_tokens / answer.prompt_tokens, 6) if answer.prompt_tokens else None,
        index_blocks=answer.index_blocks,
        index_capacity=answer.index_capacity,
        index_evicted=answer.index_evicted,
        workers=[_worker_cache(worker) for worker in answer.workers],
    )


def flush_item(answer: admin_pb2.WorkerFlush) -> FlushItem:
    return FlushItem(worker=answer.worker_id, pool=role_name(answer.role), flushed=answer.flushed, reason=answer.reason)


def _worker_cache(answer: admin_pb2.WorkerCache) -> WorkerCacheItem:
    return WorkerCacheItem(
        worker=answer.worker_id,
        pool=role_name(answer.role),
        held_blocks=answer.held_blocks,
        num_blocks=answer.num_blocks,
        block_tokens=answer.block_tokens,
        kv_usage=round(answer.kv_usage, 6),
    )
