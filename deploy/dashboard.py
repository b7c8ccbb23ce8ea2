"""The Grafana dashboard as data: rows of panels over the metrics of `cluster/metrics_table.py`, laid out on the grid.

`deploy.monitoring` writes it to a file. What each expression reads is checked against the table, and on a live cluster
against Prometheus itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.metrics_table import METRICS
from deploy.document import Json

_ROUTER, _WORKER = 'job=~"$job",router=~"$router"', 'job=~"$job",pool=~"$pool"'
_WIDTH, _HEIGHT, _GRID = 8, 8, 24
_DATASOURCE: dict[str, Json] = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """`legend` in Grafana's own notation. A series that several scrapes tell of counts once: expressions take the
    largest over `job` and `instance` first."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """`unit` as Grafana names it."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    about: str = ""


def _series(metric: str) -> str:
    """The labels that tell series of one metric apart, whoever told of them."""
    name = metric if metric in METRICS else metric.rpartition("_")[0]
    return ",".join((*METRICS[name].labels, *(("le",) if metric.endswith("_bucket") else ())))


def _sum(over: str, labels: tuple[str, ...]) -> str:
    return f"{over} by ({','.join(labels)})" if labels else over


def _rate(metric: str, where: str, *labels: str) -> str:
    """Per second."""
    return f"{_sum('sum', labels)} (max by ({_series(metric)}) (rate({metric}{{{where}}}[$__rate_interval])))"


def _now(metric: str, where: str, *labels: str, over: str = "sum") -> str:
    return f"{_sum(over, labels)} (max by ({_series(metric)}) ({metric}{{{where}}}))"


def _quantile(share: float, metric: str, *labels: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', _ROUTER, 'le', *labels)})"


def _quantiles(metric: str, *labels: str) -> tuple[Query, ...]:
    legend = "".join(f" {{{{{label}}}}}" for label in labels)
    return tuple(Query(_quantile(share, metric, *labels), f"p{share * 100:g}{legend}") for share in (0.5, 0.9, 0.99))


def _mean(metric: str, legend: str) -> Query:
    return _share(f"{metric}_sum", f"{metric}_count", legend)


def _share(part: str, whole: str, legend: str) -> Query:
    return Query(f"{_rate(part, _ROUTER)} / {_rate(whole, _ROUTER)}", legend)


def _by(metric: str, where: str, *labels: str) -> tuple[Query, ...]:
    return (Query(_rate(metric, where, *labels), " ".join(f"{{{{{label}}}}}" for label in labels)),)


_REUSE = "baton_prefix_{}_tokens_total"

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Requests", (
        Panel("Requests by outcome", "reqps", _by("baton_requests_total", _ROUTER, "outcome")),
        Panel("Tokens", "short", (
            Query(_rate("baton_prompt_tokens_total", _ROUTER), "prompt"),
            Query(_rate("baton_output_tokens_total", _ROUTER), "output"),
        ), "Per second, of requests that ended."),
        Panel("Handed over or whole", "reqps", _by("baton_requests_placed_total", _ROUTER, "way")),
    )),
    ("First token", (
        Panel("Time to first token", "s", _quantiles("baton_ttft_seconds")),
        Panel("Stages, mean", "s", (
            _mean("baton_queue_seconds", "queue"),
            _mean("baton_placement_seconds", "placement"),
            _mean("baton_prefill_seconds", "prefill"),
            _mean("baton_first_byte_seconds", "first byte"),
        ), "What the first token waited for, one stage after the other. First byte: of streamed answers only."),
        Panel("Predicted and actual, median", "s", (
            Query(_quantile(0.5, "baton_ttft_predicted_seconds"), "predicted"),
            Query(_quantile(0.5, "baton_ttft_seconds"), "actual"),
        )),
        Panel("As it was by as predicted", "none", _quantiles("baton_ttft_prediction_ratio"), "1 is right."),
        Panel("Prefill", "s", _quantiles("baton_prefill_seconds")),
        Panel("First byte", "s", _quantiles("baton_first_byte_seconds")),
    )),
    ("Between tokens", (
        Panel("Between two tokens", "s", _quantiles("baton_itl_seconds")),
        Panel("Whole requests", "s", _quantiles("baton_request_seconds")),
    )),
    ("Queue", (
        Panel("Wait for admission", "s", _quantiles("baton_queue_seconds")),
        Panel("Waiting requests", "short", (
            Query(_now("baton_admission_queued_requests", _ROUTER), "waiting"),
            Query(_now("baton_requests_in_flight", _ROUTER), "in flight, waiting included"),
        )),
        Panel("Waiting tokens", "short", (Query(_now("baton_admission_queued_tokens", _ROUTER), "tokens"),)),
        Panel("Refused, by reason", "reqps", _by("baton_refusals_total", _ROUTER, "reason")),
    )),
    ("Cache hits", (
        Panel("Prompt tokens", "short", (
            Query(_rate("baton_prompt_tokens_total", _ROUTER), "all"),
            Query(_rate(_REUSE.format("predicted"), _ROUTER), "held by some worker, as believed"),
            Query(_rate(_REUSE.format("selected"), _ROUTER), "held by the chosen worker, as believed"),
            Query(_rate(_REUSE.format("reused"), _ROUTER), "reused"),
        ), "Per second. Reused well below what the chosen worker was believed to hold: the index is wrong."),
        Panel("Share of prompt tokens reused", "percentunit", (
            _share(_REUSE.format("reused"), "baton_prompt_tokens_total", "reused"),
        )),
    )),
    ("Transfer by rung", (
        Panel("Bytes", "Bps", _by("baton_kv_transfer_bytes_total", _WORKER, "transport")),
        Panel("Transfers", "ops", _by("baton_kv_transfers_total", _WORKER, "transport", "outcome")),
        Panel("Transfer", "s", _quantiles("baton_transfer_seconds", "transport")),
        Panel("Handshake", "s", _quantiles("baton_handshake_seconds", "transport")),
        Panel("Computed again", "reqps", (
            Query(_rate("baton_worker_recomputed_requests_total", _WORKER), "requests"),
            Query(_rate("baton_recompute_seconds_count", _ROUTER), "after a pull that failed"),
        )),
        Panel("Leases", "ops", _by("baton_worker_lease_events_total", _WORKER, "event")),
    )),
    ("Workers", (
        Panel("Workers by state", "short", (
            Query(_now("baton_worker_state", _WORKER, "pool", "state"), "{{pool}} {{state}}"),
        )),
        Panel("KV cache in use", "percentunit", (
            Query(_now("baton_worker_kv_usage_ratio", _WORKER, "pool", "worker", over="max"), "{{worker}}"),
        )),
        Panel("Sequences", "short", (
            Query(_now("baton_worker_running", _WORKER, "pool"), "{{pool}} running"),
            Query(_now("baton_worker_waiting", _WORKER, "pool"), "{{pool}} waiting"),
        )),
        Panel("Pinned by leases", "short", (
            Query(_now("baton_worker_pinned_blocks", _WORKER, "pool"), "{{pool}} blocks"),
            Query(_now("baton_worker_leases", _WORKER, "pool"), "{{pool}} leases"),
        )),
    )),
    ("Recovery", (
        Panel("Attempts that were left, by cause", "ops", _by("baton_recoveries_total", _ROUTER, "cause")),
        Panel("Their requests, by outcome", "reqps", _by("baton_recovered_requests_total", _ROUTER, "outcome")),
        Panel("Refused retries, slow workers", "ops", (
            Query(_rate("baton_retries_refused_total", _ROUTER), "retries refused"),
            Query(_rate("baton_slow_workers_total", _ROUTER), "slow workers left alone"),
        )),
        Panel("Drained workers, store away", "short", (
            Query(_now("baton_drains", _ROUTER, over="max"), "drained workers"),
            Query(_now("baton_store_degraded", _ROUTER, over="max"), "store does not answer"),
        )),
    )),
    ("Scaling", (
        Panel("Ready and wanted workers", "short", (
            Query(_now("baton_worker_state", _WORKER + ',state="ready"', "pool"), "{{pool}}"),
            Query(_now("baton_pool_size", _ROUTER, "pool", over="max"), "{{pool}} wanted"),
        )),
        Panel("Prompt tokens waiting at workers", "short", (
            Query(_now("baton_worker_queued_prompt_tokens", _WORKER, "pool"), "{{pool}}"),
        ), "What the prefill pool is scaled by."),
        Panel("Prefill workers for each decode worker", "short", (
            Query(
                _now("baton_worker_state", 'job=~"$job",pool="prefill",state="ready"')
                + " / " + _now("baton_worker_state", 'job=~"$job",pool="decode",state="ready"'),
                "ratio",
            ),
        )),
    )),
)  # fmt: skip


def dashboard() -> dict[str, Json]:
    return {
        "uid": "baton",
        "title": "Baton",
        "tags": ["baton"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": list(_variables())},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }


def expressions() -> Iterator[tuple[str, str]]:
    """Title and expression of every query."""
    for _, panels in ROWS:
        for panel in panels:
            for query in panel.queries:
                yield panel.title, query.expression


def _variables() -> Iterator[Json]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}
    for name, label, series in (
        ("job", "Job", "baton_requests_in_flight"),
        ("router", "Router", "baton_requests_in_flight"),
        ("pool", "Pool", "baton_worker_up"),
    ):
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": f"label_values({series}, {name})", "refId": name},
            "definition": f"label_values({series}, {name})",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _panels() -> Iterator[Json]:
    number, y = 0, 0
    for title, panels in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _at(0, y, 24, 1),
        }
        y += 1
        for place, panel in enumerate(panels):
            number += 1
            line, column = divmod(place * _WIDTH, _GRID)
            yield _panel(number, panel, _at(column, y + line * _HEIGHT, _WIDTH, _HEIGHT))
        y += -(-len(panels) * _WIDTH // _GRID) * _HEIGHT


def _panel(number: int, panel: Panel, place: Json) -> Json:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": True,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def _at(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}
