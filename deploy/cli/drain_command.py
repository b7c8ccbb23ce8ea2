"""`baton drain`: a worker gets nothing new, from any router; what it has goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.options import Endpoint
from deploy.cli.outcome import Exit, command


@command
def drain(
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="As `baton status` names it.", show_default=False)],
    undo: Annotated[bool, typer.Option("--undo", help="Give it work again.")] = False,
    reason: Annotated[str, typer.Option(help="For whoever reads the status.")] = "",
    endpoint: Endpoint = "127.0.0.1:9000",
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Longest wait for the answer.")] = 5.0,
) -> int:
    """Give a worker nothing new; exits 4 when the router knows no such worker, 7 when no router answers."""
    from deploy.cli.endpoint import ask_admin
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.DrainRequest(worker_id=worker, reason=reason, undo=undo)
    ask_admin(endpoint, timeout, lambda admin: admin.Drain(asked, timeout=timeout))
    print(f"{worker} gets work again" if undo else f"{worker} gets nothing new; `baton status` shows what it still has")
    return Exit.OK
