"""`baton profile`: measures running engines, and writes a file from which `baton plan` counts in place of guesses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, Table, print_as
from deploy.profiling.lengths import LEAST_LONGEST

if TYPE_CHECKING:
    from cluster.engine_profile import EngineProfile
    from deploy.profiling.target import Target


@command
def profile(  # noqa: PLR0913  each is an option of the command line
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="As for `baton plan`. [default: the cluster's model.path]", show_default=False
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", "-w", metavar="GPU", help="H100, …, or CPU. [default: the cluster's]")
    ] = None,
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="Where to write it.")] = Path(
        "profile.yaml"
    ),
    start: Annotated[
        Path | None, typer.Option("--start", metavar="CONFIG", help="Start a cluster of this configuration for it.")
    ] = None,
    longest: Annotated[int, typer.Option(min=LEAST_LONGEST, metavar="TOKENS", help="Longest prompt.")] = 4_096,
    most: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Most sequences at once in one engine.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Of each length.")] = 3,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    timeout: Timeout = 120.0,
) -> int:
    """Measure an idle cluster: time to the first token over prompt lengths, time between tokens over numbers of
    sequences, bandwidth of KV blocks. Exits 6 when the cluster has other work."""
    from cluster.engine_profile import profile_document, write_profile

    with _cluster(start, endpoint) as at:
        found = _measured(at, model, hardware, timeout, (longest, most, repeats))
    try:
        write_profile(found, file)
    except OSError as error:
        raise Stop(f"--file {file}: {error.strerror}", Exit.FAILED) from error
    print(
        f"baton: wrote {file}; use it with: baton plan MODEL -w {found.hardware.name} --profile {file} …",
        file=sys.stderr,
    )
    return print_as(profile_document(found), _tables(found), output)


@contextlib.contextmanager
def _cluster(start: Path | None, endpoint: str) -> Iterator[str]:
    """The endpoint of the cluster to measure."""
    if start is None:
        yield endpoint
        return
    from cluster.config import load_config
    from cluster.host_port import host_port, reachable
    from deploy.profiling.own_cluster import own_cluster

    config = load_config(start)
    with own_cluster(start, config.engine.start_deadline_s + 60.0):
        yield host_port(reachable(config.router.grpc_host), config.router.grpc_port)


def _measured(
    endpoint: str, model: str | None, hardware: str | None, timeout_s: float, sizes: tuple[int, int, int]
) -> EngineProfile:
    import grpc

    from cluster.engine_profile import fitted
    from deploy.cli.endpoint import connected
    from deploy.cli.outcome import rpc_stop
    from deploy.cli.status_command import ask_status
    from deploy.profiling.measure import Bench
    from deploy.profiling.target import schedule, target

    limit_s = min(timeout_s, 5.0)
    found = target(endpoint, limit_s, model, hardware)
    _check_idle(found)
    plan = schedule(found, *sizes, timeout_s)
    with connected(endpoint, limit_s) as channel:
        bench = Bench(channel, plan, found.engines, lambda: ask_status(endpoint, limit_s), seed=0)
        try:
            measured = bench.measure(lambda line: print(f"baton: {line}", file=sys.stderr))
        except grpc.RpcError as error:
            raise rpc_stop(error, endpoint, timeout_s) from error
    return fitted(found.shape, found.hardware, found.tensor_parallel, measured)


def _check_idle(found: Target) -> None:
    if found.in_flight:
        raise Stop(f"{found.in_flight} requests are in flight: their times would be measured too", Exit.CONFLICT)


def _tables(found: EngineProfile) -> list[Table]:
    prompts = [
        (str(each.tokens), f"{each.seconds * 1e3:.1f}", f"{each.tokens / each.seconds:.0f}")
        for each in found.measured.prompts
    ]
    steps = [
        (str(each.sequences), f"{each.seconds * 1e3:.2f}", f"{each.sequences / each.seconds:.0f}")
        for each in found.measured.steps
    ]
    copied = found.measured.copy_bytes_per_s
    hardware, efficiency = found.hardware, found.efficiency
    fit = [
        ("operations/s", f"{hardware.flops * efficiency.compute:.3g}"),
        ("bytes/s of memory", f"{hardware.bandwidth * efficiency.memory:.3g}"),
        ("of each step, ms", f"{efficiency.step_s * 1e3:.3g}"),
        ("outside of the engine, ms", f"{found.edge_s * 1e3:.3g}"),
        ("bytes/s of KV blocks", "not measured" if copied is None else f"{copied:.3g}"),
        ("the model misses by", f"{found.error:.1%}"),
    ]
    return [
        Table(f"Prefill: {found.model} on {hardware.name}", ("prompt tokens", "ms", "tokens/s"), prompts),
        Table("Decode, one engine", ("sequences", "ms/step", "tokens/s"), steps),
        Table("Fitted", ("figure", "value"), fit),
    ]
