"""The question before what cannot be taken back."""

from __future__ import annotations

import sys

import typer

from deploy.cli.outcome import Exit, Stop


def confirm(question: str, yes: bool) -> None:
    """Returns when the answer is yes, at once where `yes` was given. Raises `Stop` otherwise, and where nobody can be
    asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Stop(f"{question} Nobody can be asked here: say --yes", Exit.USAGE)
    if not typer.confirm(question, err=True):
        raise Stop("nothing was done", Exit.FAILED)
