"""What `baton get` can list: for each kind its columns, in order, and how an item is named and written down.

Column names are stable; what is only sometimes wanted comes with `-o wide`.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.cli.amounts import NONE, age, clock, milliseconds, moment, rate, size
from deploy.cli.list_documents import EventItem, LeaseItem, RequestItem
from deploy.cli.listing import Column, Kind
from deploy.cli.status_document import ClusterStatus, Pool, Transfers, Worker

Request, Lease, Event = Column[RequestItem], Column[LeaseItem], Column[EventItem]


@dataclass(frozen=True, slots=True)
class WorkerTransfers:
    """Pulls by one worker."""

    worker: Worker
    pulls: Transfers


@dataclass(frozen=True, slots=True)
class PoolOfWorkers:
    pool: Pool
    workers: tuple[Worker, ...]

    @property
    def name(self) -> str:
        return self.pool.pool

    @property
    def running(self) -> int:
        return sum(worker.load.running for worker in self.workers)

    @property
    def waiting(self) -> int:
        return sum(worker.load.waiting for worker in self.workers)

    @property
    def queued_tokens(self) -> int:
        return sum(worker.load.queued_prefill_tokens for worker in self.workers)

    @property
    def kv_usage(self) -> float:
        """Of all its workers together; 0 without one."""
        return sum(worker.load.kv_usage for worker in self.workers) / len(self.workers) if self.workers else 0.0


WORKERS = Kind[Worker](
    "Worker",
    "Workers",
    (
        Column("worker", lambda worker: worker.id),
        Column("pool", lambda worker: worker.pool),
        Column("state", lambda worker: state_of(worker)),
        Column("running", lambda worker: str(worker.load.running)),
        Column("waiting", lambda worker: str(worker.load.waiting)),
        Column("queued", lambda worker: str(worker.load.queued_prefill_tokens)),
        Column("kv", lambda worker: f"{worker.load.kv_usage:.0%}"),
        Column("leases", lambda worker: str(worker.load.leases)),
        Column("heard", lambda worker: age(worker.heard_s)),
        Column("address", lambda worker: worker.address, wide=True),
        Column("epoch", lambda worker: worker.epoch, wide=True),
        Column("engine", lambda worker: worker.engine or NONE, wide=True),
        Column("blocks", lambda worker: str(worker.num_blocks), wide=True),
        Column("version", lambda worker: worker.version or NONE, wide=True),
        Column("reason", lambda worker: worker.unreachable or worker.drain_reason or worker.reason),
    ),
    lambda worker: worker.id,
    lambda worker: worker.document,
)

POOLS = Kind[PoolOfWorkers](
    "Pool",
    "Pools",
    (
        Column("pool", lambda item: item.name),
        Column("ready", lambda item: f"{item.pool.ready}/{item.pool.total}"),
        Column("running", lambda item: str(item.running)),
        Column("waiting", lambda item: str(item.waiting)),
        Column("queued", lambda item: str(item.queued_tokens)),
        Column("kv", lambda item: f"{item.kv_usage:.0%}"),
        Column("workers", lambda item: " ".join(worker.id for worker in item.workers) or NONE, wide=True),
    ),
    lambda item: item.name,
    lambda item: {
        "pool": item.name,
        "ready": item.pool.ready,
        "total": item.pool.total,
        "running": item.running,
        "waiting": item.waiting,
        "queuedPrefillTokens": item.queued_tokens,
        "kvUsage": round(item.kv_usage, 6),
        "workers": [worker.id for worker in item.workers],
    },
)

REQUESTS = Kind[RequestItem](
    "Request",
    "Requests",
    (
        Request("request", lambda item: item.id),
        Request("state", lambda item: item.state),
        Request("tenant", lambda item: item.tenant),
        Request("prompt", lambda item: str(item.prompt_tokens)),
        Request("cached", lambda item: NONE if item.cached_tokens is None else str(item.cached_tokens)),
        Request("output", lambda item: str(item.output_tokens)),
        Request("ttft", lambda item: milliseconds(item.ttft_s)),
        Request("itl", lambda item: milliseconds(item.itl_s)),
        Request("took", lambda item: age(item.duration_s)),
        Request("arrived", lambda item: moment(item.arrived_at), wide=True),
        Request("queued", lambda item: age(item.queued_s), wide=True),
        Request("priority", lambda item: item.priority or NONE, wide=True),
        Request("session", lambda item: item.session or NONE, wide=True),
        Request("attempts", lambda item: str(item.attempts), wide=True),
        Request("prefill", lambda item: item.prefill_worker or NONE),
        Request("decode", lambda item: item.decode_worker or NONE),
        Request("error", lambda item: item.error),
    ),
    lambda item: item.id,
    lambda item: item.document,
)

TRANSFERS = Kind[WorkerTransfers](
    "Transfer",
    "KV transfers, by the worker that pulls",
    (
        Column("worker", lambda item: item.worker.id),
        Column("pool", lambda item: item.worker.pool),
        Column("transport", lambda item: item.pulls.transport),
        Column("outcome", lambda item: item.pulls.outcome),
        Column("count", lambda item: str(item.pulls.count)),
        Column("blocks", lambda item: str(item.pulls.blocks)),
        Column("bytes", lambda item: str(item.pulls.bytes)),
        Column("seconds", lambda item: f"{item.pulls.duration_s:.3f}"),
        Column("size", lambda item: size(item.pulls.bytes), wide=True),
        Column("rate", lambda item: rate(item.pulls.bytes, item.pulls.duration_s), wide=True),
    ),
    lambda item: f"{item.worker.id}/{item.pulls.transport}/{item.pulls.outcome}",
    lambda item: {"worker": item.worker.id, "pool": item.worker.pool, **item.pulls.model_dump(by_alias=True)},
)

LEASES = Kind[LeaseItem](
    "Lease",
    "Leases",
    (
        Lease("lease", lambda item: item.id),
        Lease("worker", lambda item: item.worker),
        Lease("pool", lambda item: item.pool, wide=True),
        Lease("epoch", lambda item: item.epoch),
        Lease("state", lambda item: f"{item.state}, growing" if item.growing else item.state),
        Lease("reader", lambda item: item.reader or NONE),
        Lease("blocks", lambda item: str(item.blocks)),
        Lease("age", lambda item: age(item.age_s)),
        Lease("left", lambda item: age(item.left_s)),
    ),
    lambda item: f"{item.worker}/{item.id}",
    lambda item: item.document,
)

EVENTS = Kind[EventItem](
    "Event",
    "Events",
    (
        Event("time", lambda item: clock(item.at)),
        Event("at", lambda item: moment(item.at), wide=True),
        Event("number", lambda item: str(item.number), wide=True),
        Event("event", lambda item: item.event),
        Event("worker", lambda item: item.worker or NONE),
        Event("pool", lambda item: item.pool or NONE),
        Event("request", lambda item: item.request or NONE, wide=True),
        Event("reason", lambda item: item.reason),
    ),
    lambda item: f"{item.number}/{item.event}/{item.worker}",
    lambda item: item.document,
)


def pools_of(status: ClusterStatus) -> list[PoolOfWorkers]:
    return [
        PoolOfWorkers(pool, tuple(worker for worker in status.workers if worker.pool == pool.pool))
        for pool in status.pools
    ]


def transfers_of(workers: list[Worker]) -> list[WorkerTransfers]:
    return [WorkerTransfers(worker, pulls) for worker in workers for pulls in worker.transfers]


def state_of(worker: Worker) -> str:
    """A worker that an operator drains may not have heard of it."""
    if worker.drain_left_s is not None:
        return f"{worker.state}, {worker.drain_left_s:.0f} s left"
    return f"{worker.state}, to be drained" if worker.drained else worker.state
