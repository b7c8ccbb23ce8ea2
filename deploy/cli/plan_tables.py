"""A plan's document as tables for people: the pools, both ways compared, the reasons, and what is assumed."""

from __future__ import annotations

from deploy.cli.output import Table
from deploy.cli.plan_document import Arrangement, PlanDocument, Pool, Spread


def plan_tables(document: PlanDocument) -> list[Table]:
    chosen = document.disaggregated if document.chosen == "disaggregated" else document.whole
    tables = [_pools(document, chosen), _comparison(document)]
    if document.reasons is not None:
        rows = [(each.number, each.value, each.why) for each in document.reasons]
        tables.append(Table("Why", ("number", "value", "why"), rows))
    notes = [*(f"impossible: {each}" for each in document.impossible), *document.assumptions]
    return [*tables, Table("Assumed", ("assumed",), [(note,) for note in notes])]


def _pools(document: PlanDocument, chosen: Arrangement | None) -> Table:
    columns = ("pool", "replicas", "gpus", "tp", "hardware", "tokens/step", "sequences", "kv/gpu", "busy", "running")
    pools = [] if chosen is None else chosen.pools
    return Table(f"Pools for {document.model.name}: {document.chosen}", columns, [_pool(pool) for pool in pools])


def _pool(pool: Pool) -> tuple[str, ...]:
    return (
        pool.role,
        str(pool.replicas),
        str(pool.gpus),
        str(pool.tensor_parallel),
        pool.hardware,
        _or_dash(pool.max_batched_tokens),
        _or_dash(pool.max_sequences),
        f"{pool.kv_bytes_per_gpu / 1e9:.1f} GB",
        "-" if pool.busy is None else f"{pool.busy:.0%}",
        _or_dash(pool.mean_sequences),
    )


def _comparison(document: PlanDocument) -> Table:
    columns = ("way", "chosen", "P:D", "gpus", "$/h", "$/M output", "TTFT p50/95/99 s", "ITL p50/95/99 ms", "moved")
    ways = {"disaggregated": document.disaggregated, "whole": document.whole}
    rows = [_way(name, way, name == document.chosen) for name, way in ways.items()]
    return Table(f"{document.chosen}: {document.because}", columns, rows)


def _way(name: str, way: Arrangement | None, chosen: bool) -> tuple[str, ...]:
    if way is None:
        return (name, "no", "-", "impossible", "-", "-", "-", "-", "-")
    return (
        name,
        "yes" if chosen else "no",
        way.ratio or "-",
        str(way.gpus),
        f"{way.dollars_per_hour:g}",
        f"{way.dollars_per_million_output_tokens:g}",
        _three(way.ttft_s, 1.0),
        _three(way.itl_s, 1e3),
        "-" if way.transfer is None else f"{way.transfer.bytes_per_s / 1e9:.3g} GB/s",
    )


def _three(spread: Spread, scale: float) -> str:
    return "/".join(f"{value * scale:.3g}" for value in (spread.p50, spread.p95, spread.p99))


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
