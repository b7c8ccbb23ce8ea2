"""What two engines must have in common before KV blocks may move between them.

Owns the canonical fields, their digest and the comparison. Which values an engine has is filled in by the connector;
paths and names that may differ between equal engines do not belong in here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError, FingerprintMismatch

# Raised when the meaning of a ticket, of the blocks' order or of KvSource changes.
PROTOCOL = "1"
# Of each weight file these many bytes from its head (names, shapes and first values of the tensors) and its tail are
# read, and so many samples at even distances: a training that leaves the first and the last tensor alone is another.
_END_BYTES = 1 << 16
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 12
_SCHEME = "2"
"""Of the weights' digest: engines of two releases differ in this, and not in what looks like their weights."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Names and values in words, in one canonical order."""

    fields: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Fingerprint:
        return cls(tuple(sorted({**fields, "protocol": PROTOCOL}.items())))

    @property
    def digest(self) -> bytes:
        """32 bytes."""
        return hashlib.sha256(json.dumps(self.fields).encode()).digest()


def require_equal(reader: Mapping[str, str], writer: Fingerprint) -> None:
    """Raises `FingerprintMismatch` that names every field that differs, with both values."""
    own = dict(writer.fields)
    differ = [
        f"{name}: reader has {reader.get(name, '(none)')}, writer has {own.get(name, '(none)')}"
        for name in sorted(own.keys() | reader.keys())
        if own.get(name) != reader.get(name)
    ]
    if differ:
        raise FingerprintMismatch("KV blocks cannot move between these engines; " + "; ".join(differ))


def digest_of_config(config: Mapping[str, object], ignored: frozenset[str]) -> str:
    """Of a model's configuration, without the keys that name a place or a tool."""
    kept = {key: value for key, value in config.items() if key not in ignored}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_of_weights(directory: Path) -> str:
    """Of the sizes and samples of a model's weight files: cheap, and different for any two trainings of one model that
    change more than a few places. Of all its files where none is known to hold weights. Raises `ConfigError` for an
    empty directory."""
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    files = files or sorted(path for path in directory.iterdir() if path.is_file())
    if not files:
        raise ConfigError(f"{directory} has no file by which its weights could be told from others")
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            for offset, length in _places(size):
                stream.seek(offset)
                digest.update(stream.read(length))
    return f"{_SCHEME}:{digest.hexdigest()[:16]}"


def _places(size: int) -> Iterator[tuple[int, int]]:
    """Where to read in a file of so many bytes, and how much."""
    yield 0, _END_BYTES
    for i in range(1, _SAMPLES + 1):
        yield i * size // (_SAMPLES + 1), _SAMPLE_BYTES
    yield max(0, size - _END_BYTES), _END_BYTES
