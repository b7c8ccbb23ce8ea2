"""What of deploy/observability/ is generated: the dashboard, and the rules as Kubernetes takes them.

`python -m deploy.monitoring` writes both; tests fail when they are older than their sources.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from deploy.dashboard import dashboard

FOLDER = Path(__file__).parent / "observability"
RULES = FOLDER / "rules.yaml"
DASHBOARD = FOLDER / "dashboard.json"
KUBERNETES_RULES = FOLDER / "kuberay/prometheusrule.yaml"

_HEADER = "# Written by `python -m deploy.monitoring` from deploy/observability/rules.yaml; change it there.\n"


def main() -> None:
    DASHBOARD.write_text(dashboard_text(), encoding="utf-8")
    KUBERNETES_RULES.write_text(kubernetes_rules(), encoding="utf-8")


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


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
