"""`baton model`: model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.outcome import Exit, command
from deploy.cli.quick_group import QuickGroup

app = typer.Typer(cls=QuickGroup, help="Make model directories.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Make model directories."""


@app.command()
@command
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another model.")] = 0,
) -> int:
    """Write a small Llama with random weights, the same bytes for the same seed, and print its SHA-256."""
    from deploy.demo_model import write_demo_model

    print(write_demo_model(directory, seed))
    return Exit.OK
