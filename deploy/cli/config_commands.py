"""`baton config`: check a configuration file, or turn it into what a platform takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli import config_live
from deploy.cli.options import ConfigFile
from deploy.cli.outcome import Exit, command
from deploy.cli.output import DocumentFormat, print_json, print_yaml
from deploy.cli.quick_group import QuickGroup

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
def validate(file: ConfigFile) -> int:
    """Check a configuration file; exits 2 and names each mistake, its key and what is valid there."""
    from cluster.config import load_config

    config = load_config(file)
    print(_summary(config))
    for edge in config.open_edges:
        print(f"baton: open, as security.allow_open accepts: {edge}", file=sys.stderr)
    return Exit.OK


@render.command()
@command
def kuberay(
    file: ConfigFile,
    image: Annotated[
        str | None, typer.Option(help="Container image with Baton in it. [default: baton-serve:VERSION]")
    ] = None,
    output: Annotated[DocumentFormat, typer.Option("--output", "-o", help="How to print it.")] = DocumentFormat.YAML,
) -> int:
    """Write the KubeRay RayService, and the Service of the gRPC API, for a configuration file."""
    from cluster.config import load_config
    from deploy.kuberay_render import default_image, kuberay_manifests

    manifests = kuberay_manifests(load_config(file), image or default_image())
    if output is DocumentFormat.JSON:
        print_json({"apiVersion": "v1", "kind": "List", "items": manifests})
    else:
        print_yaml(manifests)
    return Exit.OK


def _summary(config: Config) -> str:
    engine = f"{config.engine.kind} engine on {config.engine.device}"
    pools = f"prefill {_size(config.prefill)}, decode {_size(config.decode)}, router {config.router.replicas}"
    return f"valid: {config.name}: {config.model.served_name} ({config.model.path}), {engine}; {pools}"


def _size(pool: PoolConfig) -> str:
    bounds = pool.autoscale
    return str(pool.replicas) if bounds is None else f"{bounds.min_replicas}-{bounds.max_replicas}"
