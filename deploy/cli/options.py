"""Options that several commands share. Imports nothing heavy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

ENDPOINT = "BATON_ENDPOINT"
_DAY_S = 86_400.0


def _is_a_number(seconds: float) -> float:
    """Refuses `nan`, which is neither too small nor too large."""
    if math.isnan(seconds):
        raise typer.BadParameter("nan is no number of seconds")
    return seconds


Endpoint = Annotated[
    str,
    typer.Option("--endpoint", "-e", metavar="HOST:PORT", envvar=ENDPOINT, help="A router's gRPC address."),
]
Timeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        max=_DAY_S,  # sockets and gRPC take no endless wait
        metavar="SECONDS",
        callback=_is_a_number,
        help="Longest wait for an answer.",
    ),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.", show_default=False)]
