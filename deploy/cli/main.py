"""The `baton` command. Every command imports what it needs when it runs, so that help answers at once."""

from __future__ import annotations

import typer

from deploy.cli import (
    autoscale_command,
    chat_command,
    cluster_commands,
    config_commands,
    drain_command,
    explain_command,
    key_command,
    model_commands,
    plan_command,
    scale_command,
    status_command,
    trace_command,
)
from deploy.cli.outcome import Exit, command

# Plain help and plain errors: drawing them costs more time than all the rest of `--help`.
app = typer.Typer(
    help="Serve large language models with prefill and decode on separate pools of workers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("up")(cluster_commands.up)
app.command("down")(cluster_commands.down)
app.command("status")(status_command.status)
app.command("explain")(explain_command.explain)
app.command("trace")(trace_command.trace)
app.command("drain")(drain_command.drain)
app.command("undrain")(drain_command.undrain)
app.command("scale")(scale_command.scale)
app.command("chat")(chat_command.chat)
app.command("plan")(plan_command.plan)
app.add_typer(autoscale_command.app, name="autoscale")
app.add_typer(config_commands.app, name="config")
app.add_typer(key_command.app, name="key")
app.add_typer(model_commands.app, name="model")


@app.command()
@command
def version() -> int:
    """Print the version."""
    import importlib.metadata

    print(f"baton {importlib.metadata.version('baton-serve')}")
    return Exit.OK


def main() -> None:
    """Runs the command line of this process and ends it with the command's exit code."""
    app(prog_name="baton")


if __name__ == "__main__":
    main()
