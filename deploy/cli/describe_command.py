"""`baton describe`: everything that is known of one worker, pool or request."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import command
from deploy.cli.output import Format, print_as
from deploy.cli.quick_group import QuickGroup

app = typer.Typer(cls=QuickGroup, help="Everything known of one worker, pool or request.", no_args_is_help=True)

_EVENTS = 20
_REQUESTS = 10

Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]


@app.callback()
def describe() -> None:
    """Everything known of one worker, pool or request."""


@app.command()
@command
def worker(
    name: Annotated[str, typer.Argument(metavar="WORKER", help="As `baton get workers` names it.", show_default=False)],
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """A worker: what it is, how busy, what its cache holds, its leases, pulls, requests and events. Exits 4 when the
    router knows no such worker."""
    from deploy.cli.describe_document import describe_worker

    told = describe_worker(name, endpoint, timeout, _EVENTS, _REQUESTS)
    return print_as(told.document, told.tables, output)


@app.command()
@command
def pool(
    name: Annotated[str, typer.Argument(metavar="POOL", help="prefill or decode.", show_default=False)],
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """A pool: its workers, their load together, what was pulled, and its events. Exits 4 when there is no such pool."""
    from deploy.cli.describe_document import describe_pool

    told = describe_pool(name, endpoint, timeout, _EVENTS)
    return print_as(told.document, told.tables, output)


@app.command()
@command
def request(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The `id` in the answer.", show_default=False)],
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """A request: where it stands, its times, every decision with its candidates, every attempt and transfer. Exits 4
    when no router knows it."""
    from deploy.cli.describe_document import describe_request

    told = describe_request(request_id, endpoint, timeout)
    return print_as(told.document, told.tables, output)
