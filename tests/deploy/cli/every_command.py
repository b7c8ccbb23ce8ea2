"""Every command of `baton` with arguments that show that it works: what is tested of all commands goes over this table.

A command that is not in it fails `test_every_command`, so none can be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from deploy.cli.main import app

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"
LOAD = ["--rate", "5", "--prompt-tokens", "500", "--output-tokens", "50", "--ttft", "1", "--itl", "0.05"]
STUB_NAMES = {
    "config": str(EXAMPLES / "local.yaml"), "model": "llama-3.1-8b", "worker": "p1", "request": "chatcmpl-1"
}  # fmt: skip
Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """`arguments` may name {config}, {model}, {worker}, {request} and {tmp}. `code`: how it ends on a live cluster.
    `stops_work`: it does something to the cluster, so it is not tried in all formats."""

    arguments: tuple[str, ...] = ()
    code: int = 0
    stops_work: bool = False


EVERY: dict[Path_, Case] = {
    ("up",): Case(("{tmp}/none.yaml",), code=2),
    ("down",): Case(("no-such-cluster",), code=4),
    ("status",): Case(),
    ("top",): Case(("--once",)),
    ("explain",): Case(("{request}",)),
    ("trace",): Case(("{request}",)),
    ("scale",): Case(("decode=1",), code=1),  # here and below: the pools of that cluster have fixed sizes
    ("autoscale", "show"): Case(),
    ("autoscale", "explain"): Case(),
    ("autoscale", "pause"): Case(("--reason", "a test"), code=1),
    ("autoscale", "resume"): Case(code=1),
    ("key", "new"): Case(("--tenant", "acme")),
    ("drain",): Case(("no-such-worker",), code=4),
    ("undrain",): Case(("{worker}",)),
    ("chat",): Case(("--max-tokens", "4", "hello")),
    ("plan",): Case(("llama-3.1-8b", "-w", "H100", *LOAD)),
    ("profile",): Case(
        ("{model}", "-f", "{tmp}/p.yaml", "--longest", "128", "--most", "1", "--repeats", "1"), stops_work=True
    ),
    ("doctor",): Case(("--quick", "{config}")),
    ("version",): Case(),
    ("completion",): Case(("bash",)),
    ("get", "workers"): Case(),
    ("get", "pools"): Case(),
    ("get", "requests"): Case(("--limit", "5")),
    ("get", "transfers"): Case(("--pool", "decode")),
    ("get", "leases"): Case(),
    ("get", "events"): Case(),
    ("describe", "worker"): Case(("{worker}",)),
    ("describe", "pool"): Case(("decode",)),
    ("describe", "request"): Case(("{request}",)),
    ("cache", "stats"): Case(),
    ("cache", "flush"): Case(("--yes",), stops_work=True),
    ("config", "validate"): Case(("{config}",)),
    ("config", "show"): Case(),
    ("config", "diff"): Case(("{config}",)),
    ("config", "apply"): Case(("{config}", "--dry-run")),
    ("config", "render", "kuberay"): Case((str(EXAMPLES / "kuberay-cpu.yaml"),)),
    ("model", "demo"): Case(("{tmp}/demo",)),
}


@cache
def commands() -> dict[Path_, Any]:
    """All that the command line has, by their words."""
    return dict(_below((), typer.main.get_command(app)))


def stub_call(path: Path_, folder: Path) -> list[str]:
    """The words of the case, with what the stub router knows."""
    names = STUB_NAMES | {"tmp": str(folder)}
    return [*path, *(argument.format(**names) for argument in EVERY[path].arguments)]


def options(command: Any) -> dict[str, Any]:
    """Its options by name."""
    return {option.name: option for option in command.params}


def formats(command: Any) -> list[str]:
    """What its `-o` takes."""
    output = options(command).get("output")
    return [] if output is None else [each.value for each in type(output.default)]


def _below(words: Path_, command: Any) -> Iterator[tuple[Path_, Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, each in command.commands.items():
        yield from _below((*words, name), each)
