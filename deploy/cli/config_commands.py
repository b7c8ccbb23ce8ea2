"""`baton config`: check a configuration file, or turn it into what a platform takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli import config_live
from deploy.cli.options import ConfigFile
from deploy.cli.outcome import Exit, command
from deploy.cli.output import DocumentFormat, Format, print_as, print_manifests
from deploy.cli.quick_group import QuickGroup
from deploy.document import Json

if TYPE_CHECKING:
    from cluster.config import Config, PoolConfig

app = typer.Typer(cls=QuickGroup, help="Check, compare, render and apply configurations.", no_args_is_help=True)
render = typer.Typer(cls=QuickGroup, help="Turn a configuration into what a platform takes.", no_args_is_help=True)
app.add_typer(render, name="render")
app.command("show")(config_live.show)
app.command("diff")(config_live.diff)
app.command("apply")(config_live.apply)


@render.callback()
def rendering() -> None:
    """Turn a configuration into what a platform takes."""


@app.command()
@command
def validate(
    file: ConfigFile,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
) -> int:
    """Check a configuration file; exits 2 and names each mistake, its key and what is valid there."""
    from cluster.config import load_config
    from cluster.errors import ConfigError

    try:
        config = load_config(file)
    except ConfigError as error:
        if output is not Format.TABLE:
            print_as(_verdict(file, str(error).splitlines(), []), [], output)
        raise
    edges = list(config.open_edges)
    if output is Format.TABLE:
        print(_summary(config))
    else:
        print_as(_verdict(file, [], edges), [], output)
    for edge in edges:
        print(f"baton: open, as security.allow_open accepts: {edge}", file=sys.stderr)
    return Exit.OK


@render.command()
@command
def kuberay(
    file: ConfigFile,
    image: Annotated[
        str | None, typer.Option(help="Container image with Baton in it. [default: baton-serve:VERSION-DEVICE]")
    ] = None,
    output: Annotated[DocumentFormat, typer.Option("--output", "-o", help="How to print it.")] = DocumentFormat.YAML,
) -> int:
    """Write the KubeRay RayService, and the Service of the gRPC API, for a configuration file."""
    from cluster.config import load_config
    from deploy.kuberay_render import default_image, kuberay_manifests

    config = load_config(file)
    manifests = kuberay_manifests(config, image or default_image(config))
    print_manifests(manifests, as_json=output is DocumentFormat.JSON)
    return Exit.OK


def _verdict(file: Path, mistakes: list[str], open_edges: list[str]) -> Json:
    return {
        "apiVersion": "baton/v1",
        "kind": "ConfigVerdict",
        "file": str(file),
        "valid": not mistakes,
        "mistakes": mistakes,
        "openEdges": open_edges,
    }


def _summary(config: Config) -> str:
    engine = f"{config.engine.kind} engine on {config.engine.device}"
    pools = f"prefill {_size(config.prefill)}, decode {_size(config.decode)}, router {config.router.replicas}"
    return f"valid: {config.name}: {config.model.served_name} ({config.model.path}), {engine}; {pools}"


def _size(pool: PoolConfig) -> str:
    bounds = pool.autoscale
    return str(pool.replicas) if bounds is None else f"{bounds.min_replicas}-{bounds.max_replicas}"
