"""How an engine's owner learns where the connector inside the engine listens: a small file, written once, whole or
not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Announcement:
    """`address`: host:port of the engine's KvSource. `fingerprint`: digest of what its blocks look like."""

    address: str
    fingerprint: bytes


def announce(path: Path, announcement: Announcement) -> None:
    """Raises OSError when the owner's folder is gone."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"address": announcement.address, "fingerprint": announcement.fingerprint.hex()}))
    os.replace(draft, path)


def read_announcement(path: Path) -> Announcement | None:
    """None until it is there."""
    try:
        told = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return Announcement(told["address"], bytes.fromhex(told["fingerprint"]))
