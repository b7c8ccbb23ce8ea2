"""The Helm chart with keys and TLS: files reach every pod, probes still work, and what is left open is named."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from tests.deploy.rendered_chart import config_of, container, groups, manifests, needs_helm, pods, ray_service
from tests.keys import made

FOLDER = "/etc/baton-security"
KEYS = f'config.security.keys_file="{FOLDER}/keys.yaml"'
TLS = f'config.security.tls={{"cert": "{FOLDER}/tls.crt", "key": "{FOLDER}/tls.key"}}'
CLUSTER_TLS = (
    f'config.security.cluster_tls={{"cert": "{FOLDER}/m.crt", "key": "{FOLDER}/m.key", "ca": "{FOLDER}/ca.crt"}}'
)
CLOSED = "config.security.allow_open=false"
MOUNTED = 'secrets.security.name="baton-guard"'


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
    probes = [container(groups(ray_service("cpu.yaml", *more))["router"]["template"]) for more in ((), (TLS,))]
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
    lines = [line for line in str(refused.value).splitlines() if "config.security:" in line]
    assert {line.partition("; set ")[2].partition(", or")[0] for line in lines} == left
