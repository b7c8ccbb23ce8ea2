"""The `baton` command. Every command imports what it needs when it runs, so that help answers at once."""

from __future__ import annotations

import io
import sys

import typer

from deploy.cli import (
    about_commands,
    autoscale_command,
    cache_command,
    chat_command,
    cluster_commands,
    config_commands,
    describe_command,
    doctor_command,
    drain_command,
    explain_command,
    get_command,
    key_command,
    model_commands,
    plan_command,
    profile_command,
    scale_command,
    status_command,
    top_command,
    trace_command,
)
from deploy.cli.quick_group import QuickGroup

# Plain help and plain errors: drawing them costs more time than all the rest of `--help`.
app = typer.Typer(
    cls=QuickGroup,
    help="Serve large language models with prefill and decode on separate pools of workers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("up")(cluster_commands.up)
app.command("down")(cluster_commands.down)
app.command("status")(status_command.status)
app.command("top")(top_command.top)
app.command("explain")(explain_command.explain)
app.command("trace")(trace_command.trace)
app.command("drain")(drain_command.drain)
app.command("undrain")(drain_command.undrain)
app.command("scale")(scale_command.scale)
app.command("chat")(chat_command.chat)
app.command("plan")(plan_command.plan)
app.add_typer(autoscale_command.app, name="autoscale")
app.command("profile")(profile_command.profile)
app.command("doctor")(doctor_command.doctor)
app.command("version")(about_commands.version)
app.command("completion")(about_commands.completion)
app.add_typer(get_command.app, name="get")
app.add_typer(describe_command.app, name="describe")
app.add_typer(cache_command.app, name="cache")
app.add_typer(config_commands.app, name="config")
app.add_typer(key_command.app, name="key")
app.add_typer(model_commands.app, name="model")


def main() -> None:
    """Runs the command line of this process and ends it with the command's exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    app(prog_name="baton")


if __name__ == "__main__":
    main()
