"""`baton up` and `baton down`: a cluster on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.options import ConfigFile, wait_of
from deploy.cli.outcome import command


@command
def up(
    file: ConfigFile,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it serves; `baton down` ends it.")
    ] = False,
    deadline: Annotated[
        float | None, wait_of(1.0, "Give up when it does not serve by then. [default: engine's]")
    ] = None,
) -> int:
    """Start a cluster on this machine and keep it until Ctrl-C."""
    from deploy.up import run_up

    return run_up(file, detach, deadline)


@command
def down(
    name: Annotated[str | None, typer.Argument(help="The cluster's name; not needed when one runs.")] = None,
) -> int:
    """End a cluster on this machine, and every process of it."""
    from deploy.up import run_down

    return run_down(name)
