"""Options that several commands share. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ENDPOINT = "BATON_ENDPOINT"

Endpoint = Annotated[
    str,
    typer.Option("--endpoint", "-e", metavar="HOST:PORT", envvar=ENDPOINT, help="A router's gRPC address."),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.", show_default=False)]
