"""What of deploy/observability/ and its documentation is generated: the dashboard, the rules as Kubernetes takes them,
and the list of metrics.

`python -m deploy.monitoring` writes all; tests fail when they are older than their sources.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from cluster.metrics_table import METRICS
from deploy.dashboard import dashboard

FOLDER = Path(__file__).parent / "observability"
RULES = FOLDER / "rules.yaml"
DASHBOARD = FOLDER / "dashboard.json"
KUBERNETES_RULES = FOLDER / "kuberay/prometheusrule.yaml"

DOCUMENT = Path(__file__).parent.parent / "docs/observability.md"

_LIST = re.compile(r"(<!-- metrics: .*? -->\n).*(<!-- end of metrics -->)", re.DOTALL)
_HEADER = "# Written by `python -m deploy.monitoring` from deploy/observability/rules.yaml; change it there.\n"


def main() -> None:
    DASHBOARD.write_text(dashboard_text(), encoding="utf-8")
    KUBERNETES_RULES.write_text(kubernetes_rules(), encoding="utf-8")
    DOCUMENT.write_text(document_text(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


def document_text(current: str) -> str:
    """The document with today's list of metrics; all else stays."""
    lines = ["", "| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{each.name}` | {each.kind.value} | {each.unit} | {', '.join(each.labels)} | {each.help} |"
        for each in METRICS.values()
    ]
    return _LIST.sub(lambda found: found[1] + "\n".join(lines) + "\n\n" + found[2], current)


def kubernetes_rules() -> str:
    """The rules as a PrometheusRule of the Prometheus operator."""
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "baton", "labels": {"app.kubernetes.io/name": "baton"}},
        "spec": yaml.safe_load(RULES.read_text(encoding="utf-8")),
    }
    return _HEADER + yaml.safe_dump(manifest, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
