"""What is piped into a command, as text. Imports nothing heavy."""

from __future__ import annotations

import sys

from deploy.cli.outcome import Exit, Stop, checked_text

_NAME = "standard input"


def read_standard_input() -> str:
    """All of it. Raises `Stop` where it is no text."""
    try:
        return checked_text(sys.stdin.read(), _NAME)
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise Stop(f"{_NAME}: not {error.encoding.upper()} text: {where}", Exit.USAGE) from error
