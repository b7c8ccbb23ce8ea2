"""Keys for tests, with the entries that a configuration has for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.config_security import KeyEntry
from cluster.key_ring import key_hash, key_id, new_key


@dataclass(frozen=True, slots=True)
class Made:
    key: str
    entry: KeyEntry

    @property
    def bearer(self) -> str:
        return f"Bearer {self.key}"

    @property
    def raw(self) -> dict[str, Any]:
        """As it stands in a configuration file."""
        return self.entry.model_dump(mode="json", exclude_none=True)


def made(**holder: str) -> Made:
    """`holder`: tenant or role."""
    key = new_key()
    return Made(key, KeyEntry.model_validate({"id": key_id(key), "sha256": key_hash(key)} | holder))
