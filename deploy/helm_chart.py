"""What of the Helm chart is generated: the configuration's part of the values' schema, the ports that are taken, and
the plain manifests.

`python -m deploy.helm_chart` writes all; tests fail when they are older than their sources. Needs `helm`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from cluster.config import Config
from cluster.errors import ConfigError
from deploy.taken_ports import TAKEN_PORTS

CHART = Path(__file__).parent / "helm" / "baton"
EXAMPLES = CHART / "examples"
PLAIN = Path(__file__).parent / "kuberay"
SCHEMA = CHART / "values.schema.json"
PORTS = CHART / "templates" / "_ports.tpl"

_RELEASE = "baton"
_HEADER = "# Written by `python -m deploy.helm_chart` from deploy/helm/baton/examples/{name}; change it there.\n"
_PORTS_HEADER = "{{/* Written by `python -m deploy.helm_chart` from deploy/taken_ports.py; change it there. */}}\n"
_HELM_S = 60.0


def main() -> None:
    SCHEMA.write_text(values_schema(SCHEMA.read_text()))
    PORTS.write_text(ports_template())
    PLAIN.mkdir(exist_ok=True)
    for example in sorted(EXAMPLES.glob("*.yaml")):
        (PLAIN / example.name).write_text(plain_manifests(example))


def values_schema(current: str) -> str:
    """The chart's schema with the definitions of today's configuration; what is written by hand stays."""
    schema = json.loads(current)
    by_hand = {name: each for name, each in schema["$defs"].items() if name.islower()}
    config = Config.model_json_schema()
    sections = config.pop("$defs")
    schema["$defs"] = {**by_hand, "Config": config, **sections}
    return json.dumps(schema, indent=2) + "\n"


def ports_template() -> str:
    """`deploy.taken_ports` as a template that returns YAML."""
    entries = [f"- {json.dumps(asdict(each))}" for each in TAKEN_PORTS]
    return "\n".join([f'{_PORTS_HEADER}{{{{- define "baton.takenPorts" -}}}}', *entries, "{{- end -}}", ""])


def plain_manifests(example: Path) -> str:
    """What `kubectl apply` takes for the values in `example`. Raises `ConfigError` when Helm refuses them."""
    return _HEADER.format(name=example.name) + helm("template", _RELEASE, str(CHART), "-f", str(example))


def helm(*arguments: str) -> str:
    """Helm's output. Raises `ConfigError` with its words when it fails, is not installed, or does not answer."""
    command = ["helm", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_HELM_S, check=False)
    except FileNotFoundError as error:
        raise ConfigError("helm is not installed: see docs/kubernetes.md") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"helm {arguments[0]}: no answer within {_HELM_S:g} s") from error
    if done.returncode:
        raise ConfigError(f"helm {arguments[0]}: {done.stderr.strip()}\n{done.stdout.strip()}".strip())
    return done.stdout


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(str(error))
