"""The documents of all commands: each says what it is, and has one key for each thing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.every_command import EVERY, Path_, commands, formats, options, stub_call
from tests.deploy.cli.stub_router import StubRouter

PAGE = Path(__file__).parents[3] / "docs/cli.md"
WITHOUT = {("up",), ("down",), ("chat",), ("top",), ("completion",), ("model", "demo")}
OTHERS_FILES = {("config", "show"), ("config", "render", "kuberay")}  # a configuration, and what Kubernetes reads
NEEDS_A_CLUSTER = {("profile",), ("config", "apply")}
OPEN_TELEMETRY = {"traceId", "spanId", "parentId"}
WITH_DOCUMENT = sorted(path for path in EVERY if "json" in formats(commands()[path]) and path not in NEEDS_A_CLUSTER)


def test_formats_are_the_same_but_for_lists_and_what_the_page_names() -> None:
    found = {path: formats(command) for path, command in commands().items()}
    assert {path for path, each in found.items() if not each} == WITHOUT
    assert found.pop(("config", "render", "kuberay")) == ["yaml", "json"]
    for path, each in found.items():
        if path not in WITHOUT:
            assert each == (
                ["table", "wide", "json", "yaml", "name"] if path[0] == "get" else ["table", "json", "yaml"]
            )
    (named,) = re.findall(r"on every command but ([^:.;]*)[:.;]", PAGE.read_text())
    assert {tuple(name.split()) for name in re.findall(r"`([^`]*)`", named)} == WITHOUT


@pytest.mark.parametrize("path", WITH_DOCUMENT, ids=" ".join)
async def test_a_document_has_a_kind_and_one_key_for_each_thing(
    baton: Baton, router: StubRouter, path: Path_, tmp_path: Path
) -> None:
    at = ("-e", router.address) if "endpoint" in options(commands()[path]) else ()
    ended = await baton(*stub_call(path, tmp_path), *at, "-o", "json")
    document = json.loads(ended.stdout)
    if path in OTHERS_FILES:
        return
    assert document["apiVersion"] == "baton/v1"
    assert document["kind"].isidentifier()
    for key, value in keys_of(document):
        assert key != "role" or path in (("plan",), ("key", "new")), "a pool's name is at `pool`"
        assert not key.endswith("Id") or key in OPEN_TELEMETRY, f"{key}: what it names is its key"
        assert "unix" not in key.lower()
        assert not key.lower().endswith("seconds"), f"{key}: ...S"
        if key == "at" or key.endswith("At"):
            assert value is None or datetime.fromisoformat(value).utcoffset() == timedelta(), f"{key}: RFC 3339 in UTC"


def keys_of(document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        yield from document.items()
    for each in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from keys_of(each)
