"""What commands write to stdout: documents as JSON or YAML, and tables for people.

Tables are drawn on a terminal only; in a pipe they are plain columns. Imports nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from deploy.cli.outcome import Exit
from deploy.document import Json

if TYPE_CHECKING:
    import rich.table


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class DocumentFormat(StrEnum):
    YAML = "yaml"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under `columns`; a `title` stands above them on a terminal."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def print_json(document: Json) -> None:
    import json

    print(json.dumps(document, indent=2))


def print_yaml(documents: Sequence[Json], *, marked: bool = False) -> None:
    """As one stream; several documents are separated by `---`, texts of several lines stand as they are. `marked`: the
    first one too has its `---`, as others were printed before it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    print(
        yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, default_flow_style=False, explicit_start=marked),
        end="",
    )


def print_manifests(manifests: Sequence[Json], *, as_json: bool) -> None:
    """As `kubectl apply -f -` takes them."""
    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": manifests})
    else:
        print_yaml(manifests)


def print_tables(tables: Sequence[Table]) -> None:
    if sys.stdout.isatty():
        _draw(tables)
        return
    print("\n\n".join("\n".join(_plain(table)) for table in tables))


def print_as(document: Json, tables: Sequence[Table], output: Format) -> Exit:
    """One thing, as a document or as tables."""
    match output:
        case Format.JSON:
            print_json(document)
        case Format.YAML:
            print_yaml([document])
        case Format.TABLE:
            print_tables(tables)
    return Exit.OK


def _plain(table: Table) -> Iterator[str]:
    lines = [tuple(column.upper() for column in table.columns), *table.rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(table.columns))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _draw(tables: Sequence[Table]) -> None:
    import rich.console

    console = rich.console.Console()  # leaves colours out when NO_COLOR is set
    for table in tables:
        console.print(drawn(table))


def drawn(table: Table) -> rich.table.Table:
    """For a terminal."""
    import rich.box
    import rich.table
    import rich.text

    made = rich.table.Table(
        *table.columns, title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD, header_style="bold"
    )
    for row in table.rows:
        made.add_row(*map(rich.text.Text, row))  # as they are: brackets are no markup
    return made
