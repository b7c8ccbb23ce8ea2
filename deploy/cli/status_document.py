"""The answer of `Admin.Status` as the document that `baton status` prints: stable keys, counters summed over workers.

Knows the protocol's messages; knows nothing of channels or of how a document is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from deploy.cli.document_part import Part
from protos.baton.v1 import admin_pb2, kv_pb2, worker_pb2

LANDED = "landed"


class Router(Part):
    id: str
    version: str
    model: str
    in_flight: int
    queued: int


class Store(Part):
    """What routers share; `degraded`: it does not answer, and each goes on alone."""

    degraded: bool
    degraded_s: float
    reason: str
    routers: int
    dropped_writes: int


class Pool(Part):
    """`wanted`: how many there should be; None: the router does not know (yet)."""

    pool: str
    ready: int
    total: int
    wanted: int | None

    @property
    def at_zero(self) -> bool:
        """Nothing is asked of it: that none is ready is no lack."""
        return self.ready == 0 and self.wanted == 0


class WorkerLoad(Part):
    running: int
    waiting: int
    queued_prefill_tokens: int
    kv_usage: float
    leases: int


class Transfers(Part):
    """Pulls over one transport that ended in one way; `duration_s`: what they took, added up."""

    transport: str
    outcome: str
    count: int
    blocks: int
    bytes: int
    duration_s: float


class Worker(Part):
    """`epoch` is text because it does not fit the integers of JSON readers; `unreachable` says why no answer came, and
    all else is then `age_s` old. `drain_reason`: why it gets nothing new where it is `drained`; `drain_left_s`
    until what it still has moves. `heard_s`: since the worker said anything; `clock_ahead_s`: of its clock before the
    router's. None: not known."""

    id: str
    pool: str
    state: str
    reason: str
    unreachable: str
    drained: bool
    drain_reason: str
    drain_left_s: float | None
    address: str
    epoch: str
    engine: str
    model: str
    max_model_len: int
    block_size: int
    num_blocks: int
    version: str
    age_s: float
    heard_s: float | None
    clock_ahead_s: float | None
    load: WorkerLoad
    attempts: dict[str, int]
    transfers: list[Transfers]


class Counters(Part):
    """Since each part's start. `recoveries`: attempts that requests had to leave, by why. `retries_refused`: requests
    that failed for lack of a retry. `slow_workers`: times one was left alone. `*_moved` counts landed pulls of readers,
    `*_sent` what their writers saw completed."""

    requests: dict[str, int]
    recoveries: dict[str, int]
    retries_refused: int
    slow_workers: int
    disaggregated: int
    whole: int
    kv_transfers: list[Transfers]
    blocks_moved: int
    bytes_moved: int
    blocks_sent: int
    bytes_sent: int
    recomputed_requests: int
    leases_live: int
    leases_offered: int
    leases_released: int
    leases_expired: int
    pinned_blocks: int


class ClusterStatus(Part):
    api_version: Literal["baton/v1"] = "baton/v1"
    kind: Literal["ClusterStatus"] = "ClusterStatus"
    router: Router
    pools: list[Pool]
    workers: list[Worker]
    counters: Counters
    store: Store

    @property
    def missing_pools(self) -> list[str]:
        """Pools without a ready worker, of which some are wanted."""
        well = {pool.pool for pool in self.pools if pool.ready > 0 or pool.at_zero}
        return [role for role in ("prefill", "decode") if role not in well]


def cluster_status(answer: admin_pb2.StatusResponse) -> ClusterStatus:
    return ClusterStatus(
        router=Router(
            id=answer.router_id,
            version=answer.version,
            model=answer.model,
            in_flight=answer.router.in_flight,
            queued=answer.router.queued,
        ),
        pools=[_pool(pool) for pool in answer.pools],
        workers=[_worker(worker) for worker in answer.workers],
        counters=_counters(answer),
        store=_store(answer.store),
    )


def _pool(answer: admin_pb2.PoolStatus) -> Pool:
    wanted = answer.wanted if answer.HasField("wanted") else None
    return Pool(pool=role_name(answer.role), ready=answer.ready, total=answer.total, wanted=wanted)


def _store(answer: admin_pb2.StoreStatus) -> Store:
    return Store(
        degraded=answer.degraded,
        degraded_s=round(answer.degraded_s, 3),
        reason=answer.reason,
        routers=answer.routers,
        dropped_writes=answer.dropped_writes,
    )


def _worker(answer: admin_pb2.WorkerStatus) -> Worker:
    about, load = answer.description, answer.description.load
    return Worker(
        id=about.worker_id,
        pool=role_name(about.role),
        state="unreachable" if answer.unreachable else _state(about.state),
        reason=about.reason,
        unreachable=answer.unreachable,
        drained=answer.drained,
        drain_reason=answer.drain_reason,
        drain_left_s=round(about.drain_left_s, 3) if about.HasField("drain_left_s") else None,
        address=answer.address,
        epoch=str(about.epoch),
        engine=about.engine,
        model=about.model,
        max_model_len=about.max_model_len,
        block_size=about.block_size,
        num_blocks=about.num_blocks,
        version=about.version,
        age_s=round(answer.age_s, 3),
        heard_s=round(answer.heard_s, 3) if answer.HasField("heard_s") else None,
        clock_ahead_s=round(answer.clock_ahead_s, 6) if answer.HasField("clock_ahead_s") else None,
        load=WorkerLoad(
            running=load.running,
            waiting=load.waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            kv_usage=round(load.kv_usage, 6),
            leases=load.leases,
        ),
        attempts=dict(sorted(about.counters.attempts_by_outcome.items())),
        transfers=_transfers(about.counters.transfers),
    )


def _counters(answer: admin_pb2.StatusResponse) -> Counters:
    counters = [worker.description.counters for worker in answer.workers]
    transfers = _transfers(transfer for each in counters for transfer in each.transfers)
    landed = [transfer for transfer in transfers if transfer.outcome == LANDED]
    return Counters(
        requests=dict(sorted(answer.router.requests_by_outcome.items())),
        recoveries=dict(sorted(answer.router.recoveries.items())),
        retries_refused=answer.router.retries_refused,
        slow_workers=answer.router.slow_workers,
        disaggregated=answer.router.disaggregated,
        whole=answer.router.whole,
        kv_transfers=transfers,
        blocks_moved=sum(transfer.blocks for transfer in landed),
        bytes_moved=sum(transfer.bytes for transfer in landed),
        blocks_sent=sum(each.blocks_sent for each in counters),
        bytes_sent=sum(each.bytes_sent for each in counters),
        recomputed_requests=sum(each.recomputed_requests for each in counters),
        leases_live=sum(worker.description.load.leases for worker in answer.workers),
        leases_offered=sum(each.leases_offered for each in counters),
        leases_released=sum(each.leases_released for each in counters),
        leases_expired=sum(each.leases_expired for each in counters),
        pinned_blocks=sum(each.pinned_blocks for each in counters),
    )


def _transfers(counts: Iterable[kv_pb2.TransferCount]) -> list[Transfers]:
    """One row for each transport and outcome, summed over workers."""
    groups: defaultdict[tuple[str, str], list[kv_pb2.TransferCount]] = defaultdict(list)
    for count in counts:
        groups[count.transport, count.outcome].append(count)
    return [
        Transfers(
            transport=transport,
            outcome=outcome,
            count=sum(each.count for each in group),
            blocks=sum(each.blocks for each in group),
            bytes=sum(each.bytes for each in group),
            duration_s=round(sum(each.seconds for each in group), 6),
        )
        for (transport, outcome), group in sorted(groups.items())
    ]


def role_name(role: worker_pb2.Role.ValueType) -> str:
    return _name(worker_pb2.Role, role, "ROLE_")


def _state(state: worker_pb2.WorkerState.ValueType) -> str:
    return _name(worker_pb2.WorkerState, state, "WORKER_STATE_")


def _name(enum, value: int, prefix: str) -> str:  # type: ignore[no-untyped-def]
    """The value's name without its prefix; a value of a newer version is shown as its number."""
    known = enum.DESCRIPTOR.values_by_number.get(value)
    return str(known.name).removeprefix(prefix).lower() if known else f"unknown-{value}"
