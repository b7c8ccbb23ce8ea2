"""`baton top`: workers by load or by time to first token, live in a terminal."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from deploy.cli.options import Endpoint, Timeout, wait_of
from deploy.cli.outcome import Exit, Stop, command


class SortBy(StrEnum):
    LOAD = "load"
    TTFT = "ttft"


@command
def top(
    sort: Annotated[
        SortBy, typer.Option("--sort", help="What comes first: the busiest, or the slowest.")
    ] = SortBy.LOAD,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    every: Annotated[float, wait_of(0.2, "Time between looks.")] = 1.0,
    endpoint: Endpoint = "127.0.0.1:9000",
    timeout: Timeout = 5.0,
) -> int:
    """Show the cluster live: workers with their load, and the times of the newest requests there. l and t sort by load
    and TTFT, q ends."""
    import sys

    from deploy.cli.top_view import look, run_live, top_tables

    if not once and not sys.stdout.isatty():
        raise Stop("top draws on a terminal; --once prints one table", Exit.USAGE)
    if once:
        from deploy.cli.output import print_tables

        print_tables(top_tables(look(endpoint, timeout), sort.value))
        return Exit.OK
    return run_live(endpoint, timeout, every, sort.value)
