"""`baton key`: makes API keys. A key is shown once; what is stored is its hash."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, print_as
from deploy.cli.quick_group import QuickGroup

app = typer.Typer(cls=QuickGroup, help="Make API keys.", no_args_is_help=True)


class Role(StrEnum):
    VIEW = "view"
    OPERATE = "operate"


@app.callback()
def keys() -> None:
    """Make API keys."""


@app.command()
@command
def new(
    tenant: Annotated[str | None, typer.Option(help="A user's key, for this tenant's requests.")] = None,
    role: Annotated[Role | None, typer.Option(help="An operator's key, for `baton status` and the like.")] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
) -> int:
    """Print a new key, this once, and the entry for the configuration, which holds its hash."""
    from pydantic import ValidationError

    from cluster.config_security import KeyEntry
    from cluster.key_ring import key_hash, key_id, new_key

    key = new_key()
    try:
        entry = KeyEntry.model_validate({"id": key_id(key), "sha256": key_hash(key), "tenant": tenant, "role": role})
    except ValidationError as error:
        why = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise Stop(f"--tenant, --role: {why}", Exit.USAGE) from None
    stored = entry.model_dump(mode="json", exclude_none=True)
    if output is not Format.TABLE:
        return print_as({"apiVersion": "baton/v1", "kind": "Key", "key": key, "entry": stored}, [], output)
    line = ", ".join(f'{name}: "{value}"' for name, value in stored.items())
    print(f"{key}\n\n# into security.keys, or the file that security.keys_file names:\n- {{{line}}}")
    return Exit.OK
