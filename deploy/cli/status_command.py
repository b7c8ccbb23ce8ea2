"""`baton status`: one screen about a running cluster, asked from one of its routers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.amounts import age
from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, command, fail
from deploy.cli.output import Format, Table, print_as

if TYPE_CHECKING:
    from deploy.cli.status_document import ClusterStatus, Pool, Worker

PATIENCE_S = 0.5
"""For a worker that does not answer; then what it said last is shown, with its age."""


@command
def status(
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Show pools, workers and counters; exits 3 when a pool lacks a ready worker, 7 when no router answers."""
    found = ask_status(endpoint, timeout)
    print_as(found.document, _tables(found), output)
    if found.missing_pools:
        return fail(f"no ready worker: {', '.join(found.missing_pools)}", Exit.DEGRADED)
    return Exit.OK


def ask_status(endpoint: str, timeout_s: float) -> ClusterStatus:
    from deploy.cli.endpoint import ask_admin
    from deploy.cli.status_document import cluster_status
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.StatusRequest(wait_s=min(PATIENCE_S, timeout_s / 2))
    return cluster_status(ask_admin(endpoint, timeout_s, lambda admin: admin.Status(asked, timeout=timeout_s)))


def _tables(status: ClusterStatus) -> list[Table]:
    return [_pools(status), _workers(status), _transfers(status), _counters(status)]


def _pools(status: ClusterStatus) -> Table:
    rows = [(pool.pool, f"{pool.ready}/{pool.total}" + _at_zero(pool)) for pool in status.pools]
    return Table(f"Pools of {status.router.model}", ("pool", "ready"), rows)


def _at_zero(pool: Pool) -> str:
    return ", none wanted" if pool.at_zero else ""


def _workers(status: ClusterStatus) -> Table:
    from deploy.cli.kinds import state_of

    columns = ("worker", "pool", "state", "running", "waiting", "queued", "kv", "leases", "address", "reason")
    rows = [
        (
            worker.id,
            worker.pool,
            state_of(worker),
            str(worker.load.running),
            str(worker.load.waiting),
            str(worker.load.queued_prefill_tokens),
            f"{worker.load.kv_usage:.0%}",
            str(worker.load.leases),
            worker.address,
            _reason(worker),
        )
        for worker in status.workers
    ]
    return Table("Workers", columns, rows)


def _reason(worker: Worker) -> str:
    if worker.unreachable:
        known = f"; as of {age(worker.age_s)} ago" if worker.age_s else ""
        return worker.unreachable + known
    return worker.drain_reason or worker.reason


def _transfers(status: ClusterStatus) -> Table:
    rows = [
        (each.transport, each.outcome, str(each.count), str(each.blocks), str(each.bytes))
        for each in status.counters.kv_transfers
    ]
    return Table("KV transfers", ("transport", "outcome", "count", "blocks", "bytes"), rows)


def _counters(status: ClusterStatus) -> Table:
    counters = status.counters
    rows = [(f"requests {outcome}", str(count)) for outcome, count in counters.requests.items()]
    rows += [(f"attempts left: {why}", str(count)) for why, count in counters.recoveries.items()]
    rows += [
        ("requests in flight", str(status.router.in_flight)),
        ("requests waiting", str(status.router.queued)),
        ("disaggregated", str(counters.disaggregated)),
        ("on one worker", str(counters.whole)),
        ("prompts computed again", str(counters.recomputed_requests)),
        ("leases live", str(counters.leases_live)),
        ("leases expired", str(counters.leases_expired)),
        ("blocks pinned", str(counters.pinned_blocks)),
        ("blocks moved", str(counters.blocks_moved)),
        ("bytes moved", str(counters.bytes_moved)),
    ]
    if status.store.degraded:
        rows.append((f"store away, s ({status.store.reason})", f"{status.store.degraded_s:g}"))
    return Table("Counters", ("counter", "value"), rows)
