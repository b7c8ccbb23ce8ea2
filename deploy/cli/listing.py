"""A list of things of one kind: the same items as a table, a wider one, a document or bare names.

Column names and document keys are what scripts rely on: they stay. Imports nothing heavy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from deploy.cli.outcome import Exit
from deploy.cli.output import Table, print_json, print_tables, print_yaml
from deploy.document import Json

Item = TypeVar("Item")

_CLEAR = "\x1b[H\x1b[2J"


class ListFormat(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True)
class Column(Generic[Item]):
    """`wide`: shown with `-o wide` only."""

    name: str
    cell: Callable[[Item], str]
    wide: bool = False


@dataclass(frozen=True)
class Kind(Generic[Item]):
    """What there is to say of one kind of things. `name` of an item is what other commands take; `document` its keys
    and values."""

    kind: str
    title: str
    columns: tuple[Column[Item], ...]
    name: Callable[[Item], str]
    document: Callable[[Item], Json]


def print_listing(kind: Kind[Item], items: Sequence[Item], output: ListFormat, *, again: bool = False) -> None:
    """`again`: it is one of several in a row, which YAML must keep apart."""
    match output:
        case ListFormat.JSON:
            print_json(_document(kind, items))
        case ListFormat.YAML:
            print_yaml([_document(kind, items)], marked=again)
        case ListFormat.NAME:
            for item in items:
                print(kind.name(item))
        case _:
            print_tables([listing_table(kind, items, wide=output is ListFormat.WIDE)])


def listing_table(kind: Kind[Item], items: Sequence[Item], *, wide: bool = False) -> Table:
    columns = [column for column in kind.columns if wide or not column.wide]
    rows = [tuple(column.cell(item) for column in columns) for item in items]
    return Table(kind.title, tuple(column.name for column in columns), rows)


def show(
    kind: Kind[Item], fetch: Callable[[], Sequence[Item]], output: ListFormat, watch_every_s: float | None
) -> Exit:
    """Prints once, or again and again until interrupted: on a terminal in the same place."""
    while True:
        items = fetch()
        if watch_every_s is not None and sys.stdout.isatty():
            print(_CLEAR, end="")
        print_listing(kind, items, output, again=watch_every_s is not None)
        if watch_every_s is None:
            return Exit.OK
        sys.stdout.flush()
        time.sleep(watch_every_s)


def _document(kind: Kind[Item], items: Sequence[Item]) -> Json:
    return {"apiVersion": "baton/v1", "kind": f"{kind.kind}List", "items": [kind.document(item) for item in items]}
