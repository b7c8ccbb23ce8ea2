"""`baton doctor`: is this machine fit, and is the cluster well?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import ENDPOINT, Timeout
from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, Table, print_as

if TYPE_CHECKING:
    from cluster.config import Config
    from deploy.doctor.check import Check

_USUAL = "127.0.0.1:9000"


@command
def doctor(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Check for this configuration.", show_default=False)
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            "-e",
            metavar="HOST:PORT",
            envvar=ENDPOINT,
            help=f"A router's gRPC address. [default: {_USUAL}, if any]",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes seconds: loading NIXL.")] = False,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Check this machine, and the cluster that answers; each finding with its reason and what to do. Exits 1 when
    something will not work."""
    from deploy.doctor.check import Verdict, worst

    config = _read(file)
    checks = [*_machine(config, quick), *_cluster(endpoint, timeout)]
    result = worst(checks)
    findings = [
        {"name": each.name, "verdict": each.verdict.value, "found": each.found, "whatToDo": each.what_to_do}
        for each in checks
    ]
    document = {"apiVersion": "baton/v1", "kind": "Diagnosis", "verdict": result.value, "checks": findings}
    print_as(document, [_table(checks)], output)
    return Exit.FAILED if result is Verdict.FAIL else Exit.OK


def _read(file: Path | None) -> Config | None:
    from cluster.config import load_config

    return None if file is None else load_config(file)


def _machine(config: Config | None, quick: bool) -> list[Check]:
    from deploy.doctor import machine

    checks = [machine.python(), machine.shared_memory(), machine.open_files(), machine.locked_memory()]
    checks += [machine.network(), machine.gpu(config is not None and config.engine.device == "gpu")]
    if not quick:
        from deploy.doctor.packages import nixl

        checks.append(nixl(wanted=config is None or "nixl" not in config.kv_transfer.forbid))
    return checks if config is None else [*checks, *_configured(config)]


def _configured(config: Config) -> list[Check]:
    from cluster.host_port import host_port, reachable
    from deploy.doctor import machine
    from deploy.doctor.check import Verdict
    from deploy.doctor.packages import store

    router = config.router
    wanted = [("http", router.http_host, router.http_port), ("grpc", router.grpc_host, router.grpc_port)]
    records = machine.state_folder()
    answers = (records.verdict is not Verdict.FAIL and _runs_here(config)) or _serves(
        host_port(reachable(router.grpc_host), router.grpc_port)
    )
    checks = [records, *machine.ports(wanted, lambda host, port: answers)]
    checks.append(store(config.store, config.name))
    return checks if config.engine.kind == "simulated" else [*checks, machine.model_directory(config.model.path)]


def _runs_here(config: Config) -> bool:
    """By what `baton up` wrote down: one that speaks TLS says nothing to whom it does not know."""
    from deploy.cluster_record import read_record

    record = read_record(config.name)
    return record is not None and record.grpc.endswith(f":{config.router.grpc_port}")


def _cluster(endpoint: str | None, timeout_s: float) -> list[Check]:
    from cluster.release import release
    from deploy.cli.status_command import ask_status
    from deploy.doctor.check import ok
    from deploy.doctor.live import live_checks

    asked = endpoint or _USUAL
    try:
        status = ask_status(asked, timeout_s)
    except Stop as stop:
        if stop.code is Exit.USAGE:
            raise
        return [_unanswered(stop, endpoint is not None)]
    return [ok("cluster", f"{status.router.id} answers at {asked}"), *live_checks(status, release())]


def _unanswered(stop: Stop, named: bool) -> Check:
    """Of a cluster that nobody named there need not be any."""
    from deploy.doctor.check import fail, warn

    if stop.code is Exit.UNAUTHORISED:
        advice = "a cluster is there: give the key of an operator, role view or operate"
    elif stop.code is Exit.UNREACHABLE and named:
        advice = "is it up, and can this machine reach it?"
    else:
        advice = "name a router's gRPC address with --endpoint, if one runs elsewhere"
    return (fail if named else warn)("cluster", stop.message, advice)


def _serves(endpoint: str) -> bool:
    """Whether a router is there, also one that wants a key."""
    from deploy.cli.status_command import ask_status

    try:
        ask_status(endpoint, 1.0)
    except Stop as stop:
        return stop.code is Exit.UNAUTHORISED
    return True


def _table(checks: list[Check]) -> Table:
    rows = [(each.verdict.value, each.name, each.found, each.what_to_do) for each in checks]
    return Table("Doctor", ("verdict", "check", "found", "what to do"), rows)
