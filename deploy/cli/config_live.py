"""`baton config show`, `diff` and `apply`: the whole configuration, of a file or of a cluster that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.confirm import confirm
from deploy.cli.options import ConfigFile, Endpoint, Timeout, wait_of
from deploy.cli.outcome import Exit, Stop, command, fail
from deploy.cli.output import Format, Table, print_as

if TYPE_CHECKING:
    from cluster.config import Config
    from deploy.cluster_record import ClusterRecord
    from deploy.config_changes import Change
    from deploy.document import Json


@command
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Without it: of the cluster.", show_default=False)
    ] = None,
    given: Annotated[bool, typer.Option("--given", help="Leave out what is a default.")] = False,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.YAML,
    timeout: Timeout = 5.0,
) -> int:
    """Print the configuration with every default filled in, of a file or of the live cluster. As YAML it is a
    configuration file itself; the table says which values are defaults."""
    from deploy.cli.config_reading import file_config, live_config
    from deploy.config_changes import flattened

    config = live_config(endpoint, timeout) if file is None else file_config(file)
    whole = config.model_dump(mode="json")
    named = config.model_dump(mode="json", exclude_unset=True)
    document = named if given else whole
    set_here = {key for key, _ in flattened(named)}
    origin = "cluster's file" if file is None else str(file)
    rows = [(key, _shown(value), origin if key in set_here else "default") for key, value in flattened(document)]
    return print_as(document, [Table("Configuration", ("key", "value", "from"), rows)], output)


@command
def diff(
    file: ConfigFile,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Compare a file with the live cluster, defaults filled in on both sides; exits 1 when they differ."""
    from deploy.cli.config_reading import file_config, live_config
    from deploy.config_changes import changes

    live, wanted = live_config(endpoint, timeout), file_config(file)
    found = changes(live.model_dump(mode="json"), wanted.model_dump(mode="json"))
    differences = [{"key": each.key, "live": each.before, "file": each.after} for each in found]
    document: Json = {"apiVersion": "baton/v1", "kind": "ConfigDiff", "differences": differences}
    if found or output is not Format.TABLE:
        print_as(document, [_table(found)], output)
    return Exit.FAILED if found else Exit.OK


@command
def apply(
    file: ConfigFile,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed without a terminal.")] = False,
    deadline: Annotated[
        float | None,
        wait_of(
            1.0, "Longest wait until all is replaced. [default: the longest drain, and twice engine.start_deadline_s]"
        ),
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print the change.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Give a cluster of `baton up` on this machine another configuration. Routers are replaced, and a pool where its
    workers read what changes, as a rolling update; streams go on. Exits 4 when no such cluster runs here, 6 when it
    cannot take the change while it runs."""
    from deploy.cli.config_reading import file_config, live_config
    from deploy.config_changes import DEPLOYMENTS, changes, longest_change_s, refusals, replaced

    wanted = file_config(file)
    record = _running(wanted.name)
    live = live_config(record.grpc, timeout)
    found = changes(live.model_dump(mode="json"), wanted.model_dump(mode="json"))
    restarted = replaced(live, wanted)
    refused = refusals(live, wanted, found, record.gpus)
    document: Json = {
        "apiVersion": "baton/v1",
        "kind": "ConfigChange",
        "changes": [{"key": each.key, "before": each.before, "after": each.after} for each in found],
        "restarts": list(restarted),
        "refused": refused,
        "dryRun": dry_run,
    }
    rows = [(name, "replaced, one part at a time" if name in restarted else "goes on") for name in DEPLOYMENTS]
    print_as(document, [_table(found), Table("Deployments", ("deployment", "what happens"), rows)], output)
    if refused:
        return fail("\n".join(refused), Exit.CONFLICT)
    if dry_run or not found:
        return Exit.OK
    confirm(f"Replace {', '.join(restarted)} of cluster {wanted.name!r}?", yes)
    return _carry_out(record, wanted, longest_change_s(live, wanted) if deadline is None else deadline)


def _carry_out(record: ClusterRecord, wanted: Config, deadline_s: float) -> Exit:
    from deploy.change_order import ChangeUnderWay, order_change

    try:
        order_change(record, wanted, deadline_s)
    except ChangeUnderWay as error:
        return fail(str(error), Exit.CONFLICT)
    print(f"cluster {record.name!r} runs with it", file=sys.stderr)
    return Exit.OK


def _running(name: str) -> ClusterRecord:
    from deploy.cluster_record import all_records, read_record

    record = read_record(name)
    if record is None:
        others = ", ".join(each.name for each in all_records()) or "none"
        raise Stop(
            f"no cluster {name!r} runs on this machine; running: {others}. On Kubernetes: "
            "baton config render kuberay FILE | kubectl apply -f -",
            Exit.NOT_FOUND,
        )
    return record


def _table(found: list[Change]) -> Table:
    rows = [(each.key, _shown(each.before), _shown(each.after)) for each in found]
    return Table("Differences", ("key", "live", "file"), rows)


def _shown(value: Json) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
