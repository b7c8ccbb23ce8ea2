"""`baton cache`: how well prompts are found in caches, and emptying them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.confirm import confirm
from deploy.cli.filters import PoolFilter, WorkerFilter
from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, Stop, command, fail
from deploy.cli.output import Format, Table, print_as
from deploy.cli.quick_group import QuickGroup

if TYPE_CHECKING:
    from deploy.cli.list_documents import CacheDocument, FlushItem

app = typer.Typer(cls=QuickGroup, help="Prefix caches: how well they serve, and emptying them.", no_args_is_help=True)

Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]


@app.callback()
def cache() -> None:
    """Prefix caches: how well they serve, and emptying them."""


@app.command()
@command
def stats(endpoint: Endpoint = "127.0.0.1:9000", output: Output = Format.TABLE, timeout: Timeout = 5.0) -> int:
    """Show the hit rate since the router's start, what each worker holds, and how large the router's index is."""
    from deploy.cli.lists import ask_cache

    told = ask_cache(endpoint, timeout)
    return print_as(told.document, _tables(told), output)


@app.command()
@command
def flush(
    worker: WorkerFilter = "",
    pool: PoolFilter = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed without a terminal.")] = False,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = Format.TABLE,
    timeout: Timeout = 10.0,
) -> int:
    """Have workers forget the prefixes that they hold; the routers' indexes follow. A worker with work keeps its cache,
    so no request suffers; exits 6 when one did, 4 when there is no such worker."""
    from deploy.cli.lists import order_flush

    if worker and pool is not None:
        raise Stop("name --worker or --pool, not both", Exit.USAGE)
    whose = worker or (f"the {pool} pool" if pool else "all workers")
    confirm(f"Empty the prefix caches of {whose}?", yes)
    flushed = order_flush(endpoint, timeout, worker, pool or "")
    items = [item.document for item in flushed]
    print_as({"apiVersion": "baton/v1", "kind": "CacheFlush", "workers": items}, [_flush_table(flushed)], output)
    kept = [item.worker for item in flushed if not item.flushed]
    return fail(f"not flushed: {', '.join(kept)}", Exit.CONFLICT) if kept else Exit.OK


def _tables(told: CacheDocument) -> list[Table]:
    from deploy.cli.amounts import share

    facts = [
        ("router", told.router),
        ("requests", str(told.requests)),
        ("prompt tokens", str(told.prompt_tokens)),
        ("of them found", f"{told.cached_tokens} ({share(told.cached_tokens, told.prompt_tokens)})"),
        ("of them expected", f"{told.predicted_tokens} ({share(told.predicted_tokens, told.prompt_tokens)})"),
        ("blocks in the index", f"{told.index_blocks} of {told.index_capacity}"),
        ("thrown out of it", str(told.index_evicted)),
    ]
    rows = [
        (
            each.worker,
            each.pool,
            str(each.held_blocks),
            str(each.num_blocks),
            share(each.held_blocks, each.num_blocks),
            str(each.held_blocks * each.block_tokens),
            f"{each.kv_usage:.0%}",
        )
        for each in told.workers
    ]
    columns = ("worker", "pool", "held", "blocks", "full", "tokens", "in use")
    return [Table("Prefix caches", ("what", "value"), facts), Table("Workers", columns, rows)]


def _flush_table(flushed: list[FlushItem]) -> Table:
    rows = [(each.worker, each.pool, "yes" if each.flushed else "no", each.reason) for each in flushed]
    return Table("Flushed", ("worker", "pool", "flushed", "reason"), rows)
