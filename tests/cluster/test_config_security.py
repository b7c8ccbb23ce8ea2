"""The section `security`: what it takes, and what may not stay open."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import Config, parse_config
from cluster.config_security import is_loopback
from cluster.errors import ConfigError
from tests.keys import made

TLS = {"cert": "a.pem", "key": "a.key"}
CLUSTER_TLS = TLS | {"ca": "ca.pem"}
KEYS = [made(tenant="acme").raw]
EVERYWHERE = {"http_host": "0.0.0.0", "grpc_host": "0.0.0.0"}


def config(security: dict[str, Any], **sections: Any) -> Config:
    return parse_config({"model": {"path": "none"}, "security": security} | sections)


def test_on_loopback_nothing_is_asked_for() -> None:
    assert not config({}).security.guarded


@pytest.mark.parametrize(
    ("security", "sections", "said"),
    [
        ({}, {"router": {"http_host": "0.0.0.0"}}, "router.http_host is 0.0.0.0, and nobody is asked for a key"),
        ({"tls": TLS}, {"router": {"grpc_host": "10.0.0.1"}}, "router.grpc_host is 10.0.0.1, and nobody is asked"),
        ({"keys": KEYS}, {"router": {"grpc_host": "0.0.0.0"}}, "unencrypted: set security.tls"),
        ({}, {"prefill": {"listen_host": "0.0.0.0"}}, "prefill.listen_host is 0.0.0.0, .*security.cluster_tls"),
        ({"tls": TLS, "keys": KEYS}, {"decode": {"listen_host": "h7"}}, "decode.listen_host is h7, .*cluster_tls"),
    ],
)
def test_an_edge_that_others_reach_unguarded_is_refused_with_the_reason(
    security: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config(security, **sections)
    assert "security.allow_open: true" in str(caught.value)
    config(security | {"allow_open": True}, **sections)


def test_with_keys_and_both_kinds_of_tls_everything_may_be_reached() -> None:
    guarded = {"keys": KEYS, "tls": TLS, "cluster_tls": CLUSTER_TLS}
    pools = {pool: {"listen_host": "0.0.0.0"} for pool in ("prefill", "decode")}
    assert config(guarded, router=EVERYWHERE, **pools).security.guarded


def test_a_keys_file_asks_for_keys_too() -> None:
    assert config({"keys_file": "/somewhere"}).security.guarded


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "either tenant"),
        ({"tenant": "acme", "role": "view"}, "either tenant"),
        ({"tenant": "anonymous"}, "anonymous is whoever has no key"),
        ({"role": "root"}, "'view' or 'operate'"),
        ({"tenant": "acme", "sha256": "abc"}, "sha256"),
    ],
)
def test_an_entry_that_names_no_holder_is_refused(entry: dict[str, str], said: str) -> None:
    whole = {"id": "0" * 12, "sha256": "0" * 64} | entry
    with pytest.raises(ConfigError, match=said):
        config({"keys": [whole]})


@pytest.mark.parametrize("at", ["keys.0.sha256", "keys.0.id", "keys.0", "keys", "keys_file", "tls"])
def test_a_key_in_place_of_its_hash_is_refused_and_not_shown(at: str) -> None:
    key = made(tenant="acme")
    sections: dict[str, dict[str, Any]] = {
        "keys.0.sha256": {"keys": [key.raw | {"sha256": key.key}]},
        "keys.0.id": {"keys": [key.raw | {"id": key.key}]},
        "keys.0": {"keys": [key.key]},
        "keys": {"keys": key.key},
        "keys_file": {"keys_file": [key.key]},
        "tls": {"tls": key.key},
    }
    with pytest.raises(ConfigError) as caught:
        config(sections[at])
    assert f"security.{at}: " in str(caught.value)
    assert key.key not in str(caught.value)


def test_an_id_stands_for_one_key() -> None:
    with pytest.raises(ConfigError, match="stands there twice"):
        config({"keys": KEYS * 2})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("[::]", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
