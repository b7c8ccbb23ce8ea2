"""Caches of the fleet, for the operator: what this router knows of them, and their emptying.

A worker empties its own cache, and only when that disturbs nobody; routers follow by what it then tells on Watch.
"""

from __future__ import annotations

import asyncio

from cluster.engine import Role
from cluster.errors import WorkerLost
from cluster.membership import WorkerRecord
from cluster.wire import role_to_wire
from protos.baton.v1 import admin_pb2 as pb
from router.cache_counts import CacheCounts
from router.fleet import NO_SESSION, Fleet
from router.fleet_events import FleetEvents
from router.seen import Seen
from router.worker_link import WorkerLink

_BUSY = "blocks of its cache are in use by requests or leases: try again when it is idle, or drain it first"


class CacheView:
    def __init__(self, fleet: Fleet, counts: CacheCounts, events: FleetEvents) -> None:
        self._fleet = fleet
        self._counts = counts
        self._events = events

    def stats(self, router_id: str) -> pb.CacheResponse:
        placing, counts = self._fleet.dispatch.placing, self._counts
        index, loads = placing.placement.index, placing.placement.loads
        answer = pb.CacheResponse(
            router_id=router_id,
            requests=counts.requests,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            predicted_tokens=counts.predicted_tokens,
            index_blocks=len(index),
            index_capacity=index.capacity,
            index_evicted=index.evicted,
        )
        reports = self._fleet.reports
        for worker in self._fleet.dispatch.view:
            known = reports.last(worker.worker_id)
            answer.workers.add(
                worker_id=worker.worker_id,
                role=role_to_wire(worker.role),
                held_blocks=index.held_by(worker.worker_id) if loads.row(worker.worker_id) is not None else 0,
                num_blocks=worker.num_blocks,
                block_tokens=placing.placement.block.tokens,
                kv_usage=0.0 if known is None else known.load.kv_usage,
            )
        return answer

    async def flush(self, worker_id: str, role: Role | None) -> list[pb.WorkerFlush]:
        """Of one worker, of a pool, or of all; at once, within the deadline of a call. Whose cache stays says why."""
        asked = [
            self._flush(record, link)
            for record, link in self._fleet.known
            if worker_id in ("", record.worker_id) and role in (None, record.role)
        ]
        return list(await asyncio.gather(*asked))

    async def _flush(self, record: WorkerRecord, link: WorkerLink | None) -> pb.WorkerFlush:
        reason = NO_SESSION if link is None else await _forget(link)
        if not reason:
            self._events.add(Seen.FLUSHED, record.worker_id, "an operator had its prefix cache emptied")
        return pb.WorkerFlush(
            worker_id=record.worker_id, role=role_to_wire(record.role), flushed=not reason, reason=reason
        )


async def _forget(link: WorkerLink) -> str:
    """Why the worker keeps its cache; empty: it does not."""
    try:
        return "" if await link.forget_prefixes() else _BUSY
    except WorkerLost as error:
        return str(error)
