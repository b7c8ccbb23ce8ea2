"""One worker, pool or request, put together from several answers of a router: a document, and tables for people."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.cli.amounts import NONE, age, milliseconds, moment, share
from deploy.cli.kinds import (
    EVENTS,
    LEASES,
    REQUESTS,
    TRANSFERS,
    WORKERS,
    PoolOfWorkers,
    pools_of,
    state_of,
    transfers_of,
)
from deploy.cli.list_documents import RequestItem, WorkerCacheItem
from deploy.cli.listing import Item, Kind, listing_table
from deploy.cli.lists import ask_cache, ask_events, ask_leases, ask_requests
from deploy.cli.names import check_name
from deploy.cli.outcome import Exit, Stop
from deploy.cli.output import Table
from deploy.cli.status_command import ask_status
from deploy.cli.status_document import Worker
from deploy.document import Json

_FACTS = ("what", "value")
_LOOKED_THROUGH = 1_000  # requests among which the nearest name is looked for


@dataclass(frozen=True, slots=True)
class Told:
    document: Json
    tables: list[Table]


def describe_worker(name: str, endpoint: str, timeout_s: float, most_events: int, most_requests: int) -> Told:
    """Raises `Stop` when it is not there."""
    workers = ask_status(endpoint, timeout_s).workers
    check_name("worker", name, [worker.id for worker in workers])
    worker = next(each for each in workers if each.id == name)
    cache = next((each for each in ask_cache(endpoint, timeout_s).workers if each.worker == name), None)
    # One without a link has no leases that could be asked for.
    leases = ask_leases(endpoint, timeout_s, name) if not worker.unreachable else []
    events = [event for event in ask_events(endpoint, timeout_s) if event.worker == name][-most_events:]
    requests = ask_requests(endpoint, timeout_s, most_requests, worker=name)
    transfers = transfers_of([worker])
    document: Json = {
        "apiVersion": "baton/v1",
        "kind": "WorkerDescription",
        "worker": worker.document,
        "cache": None if cache is None else cache.document,
        "leases": [LEASES.document(lease) for lease in leases],
        "requests": [REQUESTS.document(request) for request in requests],
        "events": [EVENTS.document(event) for event in events],
    }
    tables = [
        Table(f"Worker {name}", _FACTS, [("worker", name), *_facts(worker, cache)]),
        *_filled(LEASES, leases),
        *_filled(TRANSFERS, transfers),
        *_filled(REQUESTS, requests),
        *_filled(EVENTS, events),
    ]
    return Told(document, tables)


def describe_pool(name: str, endpoint: str, timeout_s: float, most_events: int) -> Told:
    """Raises `Stop` when it is not there."""
    pools = pools_of(ask_status(endpoint, timeout_s))
    check_name("pool", name, [pool.name for pool in pools])
    pool = next(each for each in pools if each.name == name)
    events = [event for event in ask_events(endpoint, timeout_s) if event.pool == name][-most_events:]
    caches = [each for each in ask_cache(endpoint, timeout_s).workers if each.pool == name]
    transfers = transfers_of(list(pool.workers))
    document: Json = {
        "apiVersion": "baton/v1",
        "kind": "PoolDescription",
        "pool": name,
        "ready": pool.pool.ready,
        "total": pool.pool.total,
        "running": pool.running,
        "waiting": pool.waiting,
        "queuedPrefillTokens": pool.queued_tokens,
        "kvUsage": round(pool.kv_usage, 6),
        "heldBlocks": sum(cache.held_blocks for cache in caches),
        "workers": [worker.document for worker in pool.workers],
        "events": [EVENTS.document(event) for event in events],
    }
    tables = [
        Table(f"Pool {name}", _FACTS, [("pool", name), *_pool_facts(pool, caches)]),
        *_filled(WORKERS, list(pool.workers)),
        *_filled(TRANSFERS, transfers),
        *_filled(EVENTS, events),
    ]
    return Told(document, tables)


def describe_request(request_id: str, endpoint: str, timeout_s: float) -> Told:
    """Raises `Stop` when no router knows it, with the nearest of those that the router that answers knows."""
    from deploy.cli.explain_command import ask_recorded, explanation_tables

    try:
        explained = ask_recorded(request_id, endpoint, timeout_s)
    except Stop as stop:
        if stop.code is Exit.NOT_FOUND:
            known = ask_requests(endpoint, timeout_s, _LOOKED_THROUGH)
            check_name("request", request_id, [request.id for request in known])
        raise
    summary = _summary(request_id, endpoint, timeout_s)
    document: Json = {
        "apiVersion": "baton/v1",
        "kind": "RequestDescription",
        "request": None if summary is None else summary.document,
        "explanation": explained.model_dump(mode="json", by_alias=True),
    }
    return Told(document, [*_summary_table(request_id, summary), *explanation_tables(explained)])


def _summary(request_id: str, endpoint: str, timeout_s: float) -> RequestItem | None:
    """None where another router had the request."""
    known = ask_requests(endpoint, timeout_s, _LOOKED_THROUGH)
    return next((request for request in known if request.id == request_id), None)


def _summary_table(request_id: str, summary: RequestItem | None) -> list[Table]:
    if summary is None:
        return []
    rows = [
        ("request", request_id),
        ("state", summary.state),
        ("arrived", moment(summary.arrived_at)),
        ("took so far" if summary.state == "running" else "took", age(summary.duration_s)),
        ("prefill worker", summary.prefill_worker or NONE),
        ("decode worker", summary.decode_worker or NONE),
        ("between tokens", milliseconds(summary.itl_s)),
    ]
    return [Table("Where it stands", _FACTS, rows)]


def _filled(kind: Kind[Item], items: list[Item]) -> list[Table]:
    return [listing_table(kind, items, wide=True)] if items else []


def _facts(worker: Worker, cache: WorkerCacheItem | None) -> list[tuple[str, str]]:
    load = worker.load
    held = NONE if cache is None else f"{cache.held_blocks} of {cache.num_blocks} blocks"
    ahead = worker.clock_ahead_s
    rows = [
        ("pool", worker.pool),
        ("state", state_of(worker)),
        ("reason", worker.unreachable or worker.drain_reason or worker.reason or NONE),
        ("heard", "never" if worker.heard_s is None else f"{age(worker.heard_s)} ago"),
        ("told", "now" if not worker.age_s else f"{age(worker.age_s)} ago"),
        ("address", worker.address),
        ("epoch", worker.epoch),
        ("engine", f"{worker.engine}, version {worker.version or 'unknown'}"),
        ("model", f"{worker.model}, up to {worker.max_model_len} tokens"),
        ("clock", NONE if ahead is None else f"{milliseconds(ahead)} before the router's"),
        ("running, waiting", f"{load.running}, {load.waiting}"),
        ("prompt tokens queued", str(load.queued_prefill_tokens)),
        ("cache in use", f"{load.kv_usage:.0%} of {worker.num_blocks} blocks of {worker.block_size} tokens"),
        ("cache held", held),
        ("leases", str(load.leases)),
    ]
    return [*rows, *((f"attempts {outcome}", str(count)) for outcome, count in worker.attempts.items())]


def _pool_facts(pool: PoolOfWorkers, caches: list[WorkerCacheItem]) -> list[tuple[str, str]]:
    held, blocks = sum(cache.held_blocks for cache in caches), sum(cache.num_blocks for cache in caches)
    return [
        ("ready", f"{pool.pool.ready} of {pool.pool.total}"),
        ("running, waiting", f"{pool.running}, {pool.waiting}"),
        ("prompt tokens queued", str(pool.queued_tokens)),
        ("cache in use", f"{pool.kv_usage:.0%}"),
        ("cache held", f"{held} of {blocks} blocks ({share(held, blocks)})"),
    ]
