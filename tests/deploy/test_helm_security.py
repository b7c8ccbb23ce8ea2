"""The Helm chart with keys and TLS: files reach every pod, probes still work, and what is left open is named."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from tests.deploy.rendered_chart import config_of, container, groups, manifests, named, needs_helm, pods, ray_service
from tests.keys import made

FOLDER = "/etc/baton-security"
KEYS = f'config.security.keys_file="{FOLDER}/keys.yaml"'
TLS = f'config.security.tls={{"cert": "{FOLDER}/tls.crt", "key": "{FOLDER}/tls.key"}}'
CLUSTER_TLS = (
    f'config.security.cluster_tls={{"cert": "{FOLDER}/m.crt", "key": "{FOLDER}/m.key", "ca": "{FOLDER}/ca.crt"}}'
)
CLOSED = "config.security.allow_open=false"
MOUNTED = 'secrets.security.name="baton-guard"'
NO_POLICY = "networkPolicy.enabled=false"


@needs_helm
def test_a_guarded_release_reads_its_files_in_every_pod() -> None:
    rendered = ray_service("cpu.yaml", CLOSED, KEYS, TLS, CLUSTER_TLS, MOUNTED)
    security = config_of(rendered).security
    assert (security.guarded, security.allow_open) == (True, False)
    assert security.keys_file == f"{FOLDER}/keys.yaml"
    for pod in pods(rendered).values():
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        assert volumes["security"]["secret"]["secretName"] == "baton-guard"
        assert {"name": "security", "mountPath": FOLDER, "readOnly": True} in container(pod)["volumeMounts"]


@needs_helm
def test_hashes_may_stand_in_the_values() -> None:
    entry = made(tenant="acme")
    setting = f"config.security.keys=[{entry.entry.model_dump_json(exclude_none=True)}]"
    assert config_of(ray_service("cpu.yaml", setting)).security.keys == [entry.entry]


@needs_helm
def test_a_router_that_speaks_tls_is_probed_over_http() -> None:
    """Kubernetes' own gRPC probe cannot."""
    settings = ((), (TLS, MOUNTED))
    probes = [container(groups(ray_service("cpu.yaml", *each))["router"]["template"]) for each in settings]
    plain, encrypted = (probe["readinessProbe"] for probe in probes)
    assert plain["grpc"] == {"port": 9000}
    assert encrypted["httpGet"] == {"path": "/health", "port": "serve"}


@needs_helm
@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ((), {"keys or keys_file", "tls", "cluster_tls"}),
        ((KEYS,), {"tls", "cluster_tls"}),
        ((KEYS, TLS), {"cluster_tls"}),
    ],
)
def test_edges_that_are_neither_guarded_nor_accepted_are_refused(settings: tuple[str, ...], left: set[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        manifests("cpu.yaml", CLOSED, *settings)
    assert _left(str(refused.value), "allow_open: true") == left


def _left(refusal: str, accept: str) -> set[str]:
    """The keys that would guard what stands open; each line says how to accept it instead."""
    lines = [line for line in refusal.splitlines() if " config.security: " in line]
    assert all(line.endswith(f", or accept it with {accept}") for line in lines)
    return {line.partition("; set ")[2].partition(", or")[0] for line in lines}


@needs_helm
@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ((), {"keys or keys_file", "tls", "cluster_tls"}),
        ((KEYS, TLS, MOUNTED), {"cluster_tls"}),
    ],
)
def test_what_only_the_policies_guarded_is_not_left_open_without_them(
    settings: tuple[str, ...], left: set[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        manifests("cpu.yaml", NO_POLICY, *settings)
    assert _left(str(refused.value), "networkPolicy.allowOpen: true") == left


@needs_helm
@pytest.mark.parametrize("settings", [("networkPolicy.allowOpen=true",), (KEYS, TLS, CLUSTER_TLS, MOUNTED)])
def test_policies_may_be_left_out_where_that_is_accepted_or_keys_and_tls_guard(settings: tuple[str, ...]) -> None:
    assert {each["kind"] for each in manifests("cpu.yaml", NO_POLICY, *settings)} & {"RayService", "NetworkPolicy"} == {
        "RayService"
    }


@needs_helm
def test_an_empty_list_of_a_policy_is_nobody() -> None:
    settings = [f"networkPolicy.{who}=[]" for who in ("clients", "operator", "metrics")]
    rules = {
        name: named("NetworkPolicy", f"baton-cpu-{name}", "cpu.yaml", *settings)["spec"]["ingress"]
        for name in ("clients", "head", "cluster")
    }
    assert (rules["clients"], rules["head"]) == ([], [])
    assert [bool(rule["from"]) for rule in rules["cluster"]] == [True]  # the release itself


@needs_helm
@pytest.mark.parametrize(("setting", "key"), [(KEYS, "keys_file"), (TLS, "tls"), (CLUSTER_TLS, "cluster_tls")])
def test_files_that_no_secret_brings_are_refused(setting: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        manifests("cpu.yaml", setting)
    line = f"secrets.security.name: names no Secret, and config.security.{key} wants its files from it"
    assert line in str(refused.value)
