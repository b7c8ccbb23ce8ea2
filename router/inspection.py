"""What an operator may look at beside the status: requests, leases, events, caches and the configuration.

Puts the answers of `Admin`'s lists together; each topic's facts are kept elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from cluster.config import Config
from cluster.engine import Role
from cluster.errors import UnknownWorker
from cluster.nearest import nearest_names
from cluster.release import release
from cluster.wire import role_from_wire, role_to_wire
from protos.baton.v1 import admin_pb2 as pb
from protos.baton.v1 import worker_pb2
from router.cache_view import CacheView
from router.fleet import Fleet
from router.fleet_events import FleetEvent
from router.journal import Journal
from router.lease_listing import LeaseListing
from router.request_journal import RequestJournal
from router.request_listing import RequestListing


class Inspection:
    """`written`: who counts what the requests found in caches."""

    def __init__(
        self,
        router_id: str,
        fleet: Fleet,
        journal: Journal,
        written: RequestJournal,
        config: Config,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._router_id = router_id
        self._fleet = fleet
        self._events = written.events
        self._config = config
        self._requests = RequestListing(journal, wall)
        self._leases = LeaseListing(fleet)
        self._caches = CacheView(fleet, written.cache, written.events)

    async def requests(self, asked: pb.ListRequestsRequest) -> pb.ListRequestsResponse:
        """Raises `BadRecord`."""
        return pb.ListRequestsResponse(router_id=self._router_id, requests=await self._requests.find(asked))

    async def leases(self, asked: pb.ListLeasesRequest) -> pb.ListLeasesResponse:
        """Raises `UnknownWorker`."""
        self._check_known(asked.worker_id)
        return pb.ListLeasesResponse(workers=await self._leases.find(asked.worker_id))

    def events(self, asked: pb.ListEventsRequest) -> pb.ListEventsResponse:
        events = [_event(event) for event in self._events.since(asked.after, asked.limit)]
        return pb.ListEventsResponse(router_id=self._router_id, events=events)

    def cache(self) -> pb.CacheResponse:
        return self._caches.stats(self._router_id)

    async def flush(self, asked: pb.FlushCacheRequest) -> pb.FlushCacheResponse:
        """Raises `UnknownWorker`, `InvalidRequest`."""
        self._check_known(asked.worker_id)
        role: Role | None = role_from_wire(asked.role) if asked.role else None
        return pb.FlushCacheResponse(workers=await self._caches.flush(asked.worker_id, role))

    def config(self) -> pb.ShowConfigResponse:
        return pb.ShowConfigResponse(
            router_id=self._router_id,
            effective_json=json.dumps(self._config.model_dump(mode="json")),
            given_json=json.dumps(self._config.model_dump(mode="json", exclude_unset=True)),
            version=release(),
        )

    def _check_known(self, worker_id: str) -> None:
        """An empty name stands for all."""
        if worker_id and self._fleet.role_of(worker_id) is None:
            raise UnknownWorker(nearest_names("worker", worker_id, self._fleet.worker_ids))


def _event(event: FleetEvent) -> pb.FleetEvent:
    times = f" ({event.times} times)" if event.times > 1 else ""
    role = worker_pb2.ROLE_UNSPECIFIED if event.role is None else role_to_wire(event.role)
    return pb.FleetEvent(
        number=event.number,
        at_unix_s=event.at_unix_s,
        kind=event.kind.value,
        worker_id=event.worker_id,
        role=role,
        reason=event.reason + times,
        request_id=event.request_id,
    )
