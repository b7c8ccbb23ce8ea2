"""`baton autoscale`: how large the pools are and why, and whether they change by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, command
from deploy.cli.output import Format, print_as
from deploy.cli.quick_group import QuickGroup

if TYPE_CHECKING:
    from protos.baton.v1 import admin_pb2

app = typer.Typer(
    cls=QuickGroup,
    help="See and stop what changes the sizes of the pools.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]


@app.command()
@command
def show(endpoint: Endpoint = "127.0.0.1:9000", output: Output = Format.TABLE, timeout: Timeout = 5.0) -> int:
    """Show the size of each pool and its reason; exits 7 when no router answers."""
    return print_summary(_ask(endpoint, timeout), output)


@app.command()
@command
def explain(endpoint: Endpoint = "127.0.0.1:9000", output: Output = Format.TABLE, timeout: Timeout = 5.0) -> int:
    """Show what is known, what each rule wants, what bound it and the last changes; exits 7 when no router answers."""
    from deploy.cli.autoscale_document import autoscaling
    from deploy.cli.autoscale_tables import explanation

    told = autoscaling(_ask(endpoint, timeout))
    return print_as(told.document, explanation(told), output)


@app.command()
@command
def pause(
    reason: Annotated[str, typer.Option(help="For whoever asks why nothing changes.")] = "",
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Leave the sizes as they are, but for orders of `baton scale`; exits 7 when no router answers."""
    return print_summary(_pause(endpoint, timeout, reason=reason), output)


@app.command()
@command
def resume(endpoint: Endpoint = "127.0.0.1:9000", output: Output = Format.TABLE, timeout: Timeout = 5.0) -> int:
    """Let the sizes follow the load again; exits 7 when no router answers."""
    return print_summary(_pause(endpoint, timeout, resume=True), output)


def print_summary(answer: admin_pb2.AutoscaleReport, output: Format) -> Exit:
    from deploy.cli.autoscale_document import autoscaling
    from deploy.cli.autoscale_tables import summary

    told = autoscaling(answer)
    return print_as(told.document, summary(told), output)


def _ask(endpoint: str, timeout_s: float) -> admin_pb2.AutoscaleReport:
    from deploy.cli.endpoint import ask_admin
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.AutoscaleRequest()
    return ask_admin(endpoint, timeout_s, lambda admin: admin.Autoscale(asked, timeout=timeout_s))


def _pause(endpoint: str, timeout_s: float, *, reason: str = "", resume: bool = False) -> admin_pb2.AutoscaleReport:
    from deploy.cli.endpoint import ask_admin
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.PauseAutoscaleRequest(reason=reason, resume=resume)
    return ask_admin(endpoint, timeout_s, lambda admin: admin.PauseAutoscale(asked, timeout=timeout_s))
