"""`baton key new`: a key that works, and an entry for the configuration that does not hold it."""

from __future__ import annotations

import json

import pytest
import yaml

from cluster.config import parse_config
from cluster.key_ring import KeyRing
from tests.deploy.cli.conftest import Baton


@pytest.mark.parametrize("holder", [("tenant", "acme"), ("role", "view"), ("role", "operate")])
async def test_the_entry_in_a_configuration_lets_the_key_in(baton: Baton, holder: tuple[str, str]) -> None:
    option, name = holder
    ended = await baton("key", "new", f"--{option}", name)
    assert (ended.code, ended.stderr) == (0, "")
    key, _, rest = ended.stdout.partition("\n")
    assert key.split("_")[2] not in rest
    config = parse_config({"model": {"path": "none"}, "security": {"keys": yaml.safe_load(rest)}})
    found = KeyRing(config.security.keys).find(key)
    assert found is not None
    assert getattr(found, option) == name


async def test_documents_hold_the_same(baton: Baton) -> None:
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        document = read((await baton("key", "new", "--tenant", "acme", "-o", form)).stdout)
        assert (document["apiVersion"], document["kind"]) == ("baton/v1", "Key")
        assert document["key"].split("_")[1] == document["entry"]["id"]
        assert document["entry"]["tenant"] == "acme"


@pytest.mark.parametrize(
    "arguments", [(), ("--tenant", "a", "--role", "view"), ("--tenant", "no spaces"), ("--tenant", "anonymous")]
)
async def test_a_key_is_for_somebody(baton: Baton, arguments: tuple[str, ...]) -> None:
    ended = await baton("key", "new", *arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "tenant" in ended.stderr
