"""Options that several commands share. Imports nothing heavy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

ENDPOINT = "BATON_ENDPOINT"
_DAY_S = 86_400.0


def _is_a_number(seconds: float | None) -> float | None:
    """Refuses `nan`, which is neither too small nor too large."""
    if seconds is not None and math.isnan(seconds):
        raise typer.BadParameter("nan is no number of seconds")
    return seconds


def wait_of(least_s: float, help_text: str) -> object:
    """An option for a time that somebody waits; at most a day, as sockets and gRPC take no endless wait."""
    return typer.Option(min=least_s, max=_DAY_S, metavar="SECONDS", callback=_is_a_number, help=help_text)


Endpoint = Annotated[
    str,
    typer.Option("--endpoint", "-e", metavar="HOST:PORT", envvar=ENDPOINT, help="A router's gRPC address."),
]
Timeout = Annotated[float, wait_of(0.1, "Longest wait for an answer.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.", show_default=False)]
