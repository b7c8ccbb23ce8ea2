"""Addresses as text, of both versions of IP."""

from __future__ import annotations

import pytest

from cluster.host_port import host_port, reachable


@pytest.mark.parametrize(
    ("host", "text"),
    [("127.0.0.1", "127.0.0.1:80"), ("a.b", "a.b:80"), ("::1", "[::1]:80"), ("[::1]", "[::1]:80"), ("", ":80")],
)
def test_only_ipv6_stands_in_brackets(host: str, text: str) -> None:
    assert host_port(host, 80) == text


@pytest.mark.parametrize(
    ("host", "dialled"),
    [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("", "127.0.0.1"), ("::1", "::1"), ("10.0.0.7", "10.0.0.7")],
)
def test_what_listens_everywhere_is_dialled_on_loopback(host: str, dialled: str) -> None:
    assert reachable(host) == dialled
