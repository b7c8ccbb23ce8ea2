"""Dashboard, rules and documentation hold to the one table of metrics; and what is generated from it is fresh."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import metrics_table as table
from cluster.metrics import Kind
from deploy import monitoring
from deploy.dashboard import expressions
from router.guard import HTTP_ACCESS, Access

ROOT = Path(__file__).parent.parent.parent
RULES_TEST = ROOT / "tests/deploy/observability/rules_test.yaml"
TOOL_S = 60

_SELECTOR = re.compile(r"(?<![\w:])(baton_\w+)(?:\{(.*?)\})?")
_LABEL = re.compile(r'(\w+)\s*=~?\s*"(.*?)"')
_GROUPED = re.compile(r"\bby \(([\w, ]+)\)")
_SCRAPED = {"job", "le"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not in PATH: it is in Debian's package `prometheus`, `apt-get download` and `dpkg -x` suffice",
)


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(monitoring.RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def all_expressions() -> Iterator[tuple[str, str]]:
    yield from expressions()
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]


def declared(series: str) -> str:
    """The metric that a series belongs to."""
    base = series.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
    name = series if series in table.METRICS else base
    assert name in table.METRICS, f"{series} is not in the table"
    assert (name == series) == (table.METRICS[name].kind is not Kind.HISTOGRAM), f"{series}: not a series of its kind"
    return name


@pytest.mark.parametrize(("title", "expression"), list(all_expressions()))
def test_every_expression_reads_metrics_labels_and_values_of_the_table(title: str, expression: str) -> None:
    read = list(_SELECTOR.finditer(expression))
    labels = set(_SCRAPED)
    for series, where in (found.groups() for found in read):
        metric = table.METRICS[declared(series)]
        labels |= set(metric.labels)
        for label, value in _LABEL.findall(where or ""):
            assert label in {*metric.labels, *_SCRAPED}, f"{series} has no label {label}"
            if label in table.LABEL_VALUES and "$" not in value:
                assert set(value.split("|")) <= table.LABEL_VALUES[label]
            if label == "le":
                assert float(value) in metric.buckets, f"{series} has no bucket {value}"
    for group in _GROUPED.findall(expression):
        assert {label.strip() for label in group.split(",")} <= labels
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert read or any(name in expression for name in recorded)


def test_every_metric_that_is_there_to_be_seen_is_on_the_dashboard_or_has_an_alert() -> None:
    shown = " ".join(expression for _, expression in all_expressions())
    unseen = {name for name in table.METRICS if name not in shown}
    assert unseen == {
        # For those who ask: counted, but nothing that anybody watches.
        "baton_worker_attempts_total", "baton_worker_blocks_sent_total", "baton_worker_bytes_sent_total",
        "baton_worker_kv_blocks", "baton_kv_transfer_blocks_total", "baton_kv_transfer_seconds_total",
        "baton_store_routers", "baton_store_dropped_writes_total",
    }  # fmt: skip


def test_generated_files_are_fresh() -> None:
    why = "run `python -m deploy.monitoring` and commit what it writes"
    assert monitoring.DASHBOARD.read_text() == monitoring.dashboard_text(), why
    assert monitoring.KUBERNETES_RULES.read_text() == monitoring.kubernetes_rules(), why
    document = monitoring.DOCUMENT.read_text()
    assert document == monitoring.document_text(document), why
    assert all(f"| `{name}` |" in document for name in table.METRICS)


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    headings = {line[4:].lower() for line in monitoring.DOCUMENT.read_text().splitlines() if line.startswith("### ")}
    tested = {
        each["alertname"]
        for test in yaml.safe_load(RULES_TEST.read_text())["tests"]
        for each in test["alert_rule_test"]
    }
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (ROOT / page).samefile(monitoring.DOCUMENT)
        assert anchor == alert["alert"].lower()
        assert anchor in headings
        assert alert["labels"]["severity"] in ("page", "warn", "info")
        assert alert["alert"] in tested


def test_the_dashboard_is_laid_out_without_overlap() -> None:
    board = json.loads(monitoring.DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Requests", "First token", "Between tokens", "Queue", "Cache hits", "Transfer by rung", "Workers",
                    "Recovery", "Scaling"]  # fmt: skip


def test_the_pod_monitor_finds_the_charts_pods_and_gives_ray_s_names_back() -> None:
    monitor = yaml.safe_load((monitoring.FOLDER / "kuberay/podmonitor.yaml").read_text())["spec"]
    manifests = list(yaml.safe_load_all((ROOT / "deploy/kuberay/cpu.yaml").read_text()))
    (service,) = (each for each in manifests if each["kind"] == "RayService")
    ray = service["spec"]["rayClusterConfig"]
    pods = [ray["headGroupSpec"]["template"], *(group["template"] for group in ray["workerGroupSpecs"])]
    for pod in pods:
        (wanted,) = monitor["selector"]["matchExpressions"]
        assert (wanted["key"], wanted["operator"]) == (monitor["jobLabel"], "Exists")
        assert wanted["key"] in pod["metadata"]["labels"]
        ports = {port["name"] for each in pod["spec"]["containers"] for port in each.get("ports", ())}
        assert monitor["podMetricsEndpoints"][0]["port"] in ports
    (rename, _) = monitor["podMetricsEndpoints"][0]["metricRelabelings"]
    renamed = re.fullmatch(rename["regex"], "ray_baton_ttft_seconds_bucket")
    assert renamed is not None
    assert renamed.expand(rename["replacement"].replace("$", "\\")) == "baton_ttft_seconds_bucket"


def test_what_prometheus_shows_where_keys_are_asked_for_is_one_comment_away() -> None:
    written = (monitoring.FOLDER / "prometheus.yaml").read_text()
    assert "authorization" not in yaml.safe_load(written)["scrape_configs"][0]
    (job,) = yaml.safe_load(re.sub(r"# (authorization:|  credentials_file:)", r"\1", written))["scrape_configs"]
    assert list(job["authorization"]) == ["credentials_file"]  # sent as `Bearer`, which is Prometheus' own choice
    assert HTTP_ACCESS["/metrics"] is Access.VIEW  # the role that its comment names


@pytest.mark.engine
@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "deploy/observability/rules.yaml"),
        ("check", "config", "deploy/observability/prometheus.yaml"),
        ("test", "rules", str(RULES_TEST)),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_prometheus_itself_takes_the_rules(arguments: tuple[str, ...]) -> None:
    ended = subprocess.run(
        ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TOOL_S, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
