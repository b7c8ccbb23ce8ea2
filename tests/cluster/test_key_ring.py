"""API keys: their form, what is stored of them, and how one is found."""

from __future__ import annotations

import hmac

import pytest

from cluster import key_ring
from cluster.errors import ConfigError
from cluster.key_ring import KeyRing, key_hash, key_id, new_key
from tests.keys import made


def test_keys_differ_and_name_their_id() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert len(first) == len("baton_") + 12 + 1 + 64
    assert first.split("_")[1] == key_id(first)


def test_what_is_stored_does_not_hold_the_key() -> None:
    key = made(tenant="acme")
    secret = key.key.split("_")[2]
    assert secret not in key.entry.model_dump_json()
    assert key.entry.sha256 == key_hash(key.key)


def test_a_key_finds_its_entry_among_others() -> None:
    keys = [made(tenant="acme"), made(tenant="other"), made(role="view")]
    ring = KeyRing(key.entry for key in keys)
    assert [ring.find(key.key) for key in keys] == [key.entry for key in keys]
    assert len(ring) == 3


def test_what_is_no_key_of_ours_finds_nothing() -> None:
    ours, foreign = made(tenant="acme"), made(tenant="acme")
    with_our_id = f"baton_{ours.entry.id}_{foreign.key.split('_')[2]}"
    ring = KeyRing([ours.entry])
    for wrong in (
        "",
        "password",
        foreign.key,
        with_our_id,
        f"{ours.key}0",
        ours.key[:-1],
        ours.key.upper(),
        ours.entry.sha256,
    ):
        assert ring.find(wrong) is None


def test_every_look_takes_one_comparison_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    ours = made(tenant="acme")
    ring = KeyRing([ours.entry])
    monkeypatch.setattr(key_ring, "hmac", type("Hmac", (), {"compare_digest": staticmethod(compare)}))
    for key in (ours.key, made(tenant="acme").key, f"{ours.key[:-1]}x", ""):
        ring.find(key)
    assert len(compared) == 4
    assert all(len(a) == len(b) == 64 for a, b in compared)


def test_two_entries_with_one_id_are_refused() -> None:
    entry = made(tenant="acme").entry
    with pytest.raises(ConfigError, match=f"{entry.id} is given twice"):
        KeyRing([entry, entry])
