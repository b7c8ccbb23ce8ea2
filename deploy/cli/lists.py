"""`Admin`'s lists, asked for and turned into items. Imports gRPC: only for commands that run."""

from __future__ import annotations

import sys

from deploy.cli.endpoint import ask_admin
from deploy.cli.list_documents import (
    CacheDocument,
    EventItem,
    FlushItem,
    LeaseItem,
    RequestItem,
    cache_document,
    event_item,
    flush_item,
    lease_items,
    request_item,
)
from protos.baton.v1 import admin_pb2, worker_pb2


def ask_requests(
    endpoint: str, timeout_s: float, limit: int, *, state: str = "", tenant: str = "", worker: str = ""
) -> list[RequestItem]:
    asked = admin_pb2.ListRequestsRequest(limit=limit, state=state, tenant=tenant, worker_id=worker)
    answer = ask_admin(endpoint, timeout_s, lambda admin: admin.ListRequests(asked, timeout=timeout_s))
    return [request_item(request) for request in answer.requests]


def ask_leases(endpoint: str, timeout_s: float, worker: str = "") -> list[LeaseItem]:
    """A worker that cannot tell its leases is named on stderr."""
    asked = admin_pb2.ListLeasesRequest(worker_id=worker)
    answer = ask_admin(endpoint, timeout_s, lambda admin: admin.ListLeases(asked, timeout=timeout_s))
    for each in answer.workers:
        if each.unreachable:
            print(f"baton: {each.worker_id}: {each.unreachable}", file=sys.stderr)
    return [item for each in answer.workers for item in lease_items(each)]


def ask_events(endpoint: str, timeout_s: float, limit: int = 0) -> list[EventItem]:
    asked = admin_pb2.ListEventsRequest(limit=limit)
    answer = ask_admin(endpoint, timeout_s, lambda admin: admin.ListEvents(asked, timeout=timeout_s))
    return [event_item(event) for event in answer.events]


def ask_cache(endpoint: str, timeout_s: float) -> CacheDocument:
    asked = admin_pb2.CacheRequest()
    return cache_document(ask_admin(endpoint, timeout_s, lambda admin: admin.Cache(asked, timeout=timeout_s)))


def order_flush(endpoint: str, timeout_s: float, worker: str, pool: str) -> list[FlushItem]:
    """`pool`: "prefill", "decode" or empty for both."""
    role = worker_pb2.Role.Value(f"ROLE_{pool.upper()}") if pool else worker_pb2.ROLE_UNSPECIFIED
    asked = admin_pb2.FlushCacheRequest(worker_id=worker, role=role)
    answer = ask_admin(endpoint, timeout_s, lambda admin: admin.FlushCache(asked, timeout=timeout_s))
    return [flush_item(each) for each in answer.workers]
