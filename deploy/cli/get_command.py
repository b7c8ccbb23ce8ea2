"""`baton get`: lists of what is in a running cluster, asked from one of its routers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.filters import EventFilter, PoolFilter, PoolName, RequestStateFilter, StateFilter, WorkerFilter
from deploy.cli.listing import ListFormat, show
from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import command
from deploy.cli.quick_group import QuickGroup

if TYPE_CHECKING:
    from deploy.cli.list_documents import EventItem, LeaseItem, RequestItem
    from deploy.cli.status_document import Worker

app = typer.Typer(cls=QuickGroup, help="List what is in a running cluster.", no_args_is_help=True)

_EVERY_S = 2.0

Output = Annotated[ListFormat, typer.Option("--output", "-o", help="How to print it.")]
Watching = Annotated[bool, typer.Option("--watch", "-w", help=f"Print it again every {_EVERY_S:g} s, until Ctrl-C.")]


@app.callback()
def get() -> None:
    """List what is in a running cluster."""


@app.command()
@command
def workers(
    pool: PoolFilter = None,
    state: StateFilter = None,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = ListFormat.TABLE,
    watch: Watching = False,
    timeout: Timeout = 5.0,
) -> int:
    """Workers with their load; one that does not answer shows what it said last. `heard` is how long ago it spoke."""
    from deploy.cli.kinds import WORKERS

    def fetch() -> list[Worker]:
        return [worker for worker in _workers(pool, "", endpoint, timeout) if state in (None, worker.state)]

    return show(WORKERS, fetch, output, _period(watch))


@app.command()
@command
def pools(
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = ListFormat.TABLE,
    watch: Watching = False,
    timeout: Timeout = 5.0,
) -> int:
    """Pools with the load of their workers together."""
    from deploy.cli.kinds import POOLS, pools_of
    from deploy.cli.status_command import ask_status

    return show(POOLS, lambda: pools_of(ask_status(endpoint, timeout)), output, _period(watch))


@app.command()
@command
def requests(  # noqa: PLR0913  each is an option of the command line
    state: RequestStateFilter = None,
    tenant: Annotated[str, typer.Option(help="Of this tenant alone.")] = "",
    worker: WorkerFilter = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the newest.")] = 20,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = ListFormat.TABLE,
    watch: Watching = False,
    timeout: Timeout = 5.0,
) -> int:
    """Requests of the router that answers: those that run, then those that ended, newest first."""
    from deploy.cli.kinds import REQUESTS
    from deploy.cli.lists import ask_requests
    from deploy.cli.names import check_worker_seen

    def fetch() -> list[RequestItem]:
        found = ask_requests(endpoint, timeout, limit, state=state or "", tenant=tenant, worker=worker)
        if worker and not found:
            check_worker_seen(worker, endpoint, timeout)
        return found

    return show(REQUESTS, fetch, output, _period(watch))


@app.command()
@command
def transfers(
    pool: PoolFilter = None,
    worker: WorkerFilter = "",
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = ListFormat.TABLE,
    watch: Watching = False,
    timeout: Timeout = 5.0,
) -> int:
    """Pulls of KV blocks since the workers' start, by worker, transport and outcome. `seconds` adds up what they
    took."""
    from deploy.cli.kinds import TRANSFERS, transfers_of

    return show(TRANSFERS, lambda: transfers_of(_workers(pool, worker, endpoint, timeout)), output, _period(watch))


@app.command()
@command
def leases(
    pool: PoolFilter = None,
    worker: WorkerFilter = "",
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = ListFormat.TABLE,
    watch: Watching = False,
    timeout: Timeout = 5.0,
) -> int:
    """Leases that live: on which worker's blocks, in which epoch, who reads them, and for how long yet."""
    from deploy.cli.kinds import LEASES
    from deploy.cli.lists import ask_leases

    def fetch() -> list[LeaseItem]:
        return [lease for lease in ask_leases(endpoint, timeout, worker) if pool in (None, lease.pool)]

    return show(LEASES, fetch, output, _period(watch))


@app.command()
@command
def events(  # noqa: PLR0913  each is an option of the command line
    pool: PoolFilter = None,
    worker: WorkerFilter = "",
    event: EventFilter = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the newest.")] = 50,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = ListFormat.TABLE,
    watch: Watching = False,
    timeout: Timeout = 5.0,
) -> int:
    """What the router that answers saw of its workers, oldest first: who joined, left, stalled, was drained, and which
    requests had to go on elsewhere."""
    from deploy.cli.kinds import EVENTS
    from deploy.cli.lists import ask_events
    from deploy.cli.names import check_worker_seen

    def fetch() -> list[EventItem]:
        found = [
            each
            for each in ask_events(endpoint, timeout)
            if pool in (None, each.pool) and worker in ("", each.worker) and event in (None, each.event)
        ]
        if worker and not found:
            check_worker_seen(worker, endpoint, timeout)
        return found[-limit:]

    return show(EVENTS, fetch, output, _period(watch))


def _workers(pool: PoolName | None, worker: str, endpoint: str, timeout_s: float) -> list[Worker]:
    """Raises `Stop` for the name of a worker that is not there."""
    from deploy.cli.names import check_name
    from deploy.cli.status_command import ask_status

    found = ask_status(endpoint, timeout_s).workers
    if worker:
        check_name("worker", worker, [each.id for each in found])
    return [each for each in found if pool in (None, each.pool) and worker in ("", each.id)]


def _period(watch: bool) -> float | None:
    return _EVERY_S if watch else None
