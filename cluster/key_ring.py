"""API keys: how one is made, what of it may be stored, and which entry of a configuration it belongs to.

A key is 256 random bits behind a public id, so a plain hash of it can neither be turned back nor guessed, and finding
its entry takes one comparison in constant time. Pure; who may do what with a key is for the edges to say.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from cluster.config_security import KeyEntry
from cluster.errors import ConfigError

_FORM = re.compile(r"baton_([0-9a-f]{12})_[0-9a-f]{64}")
_NOBODYS = "0" * 64
"""Compared with where no entry has the id, so that an unknown id takes as long as a wrong key."""


def new_key() -> str:
    return f"baton_{secrets.token_hex(6)}_{secrets.token_hex(32)}"


def key_id(key: str) -> str | None:
    """The part that may be seen by anyone; None: this is no key."""
    form = _FORM.fullmatch(key)
    return None if form is None else form[1]


def key_hash(key: str) -> str:
    """What is stored in the key's place."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """Raises `ConfigError` for an id that two entries have."""

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self._entries: dict[str, KeyEntry] = {}
        for entry in entries:
            if entry.id in self._entries:
                raise ConfigError(f"key {entry.id} is given twice: each key has an id of its own")
            self._entries[entry.id] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> KeyEntry | None:
        """The key's entry. None: it is not one of ours."""
        entry = self._entries.get(key_id(key) or "")
        stored = _NOBODYS if entry is None else entry.sha256
        return entry if hmac.compare_digest(key_hash(key), stored) else None
