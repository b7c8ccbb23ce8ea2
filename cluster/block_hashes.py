"""Names of KV blocks that every part of the cluster agrees on: a chain of 64-bit hashes over token ids.

A block's name covers all tokens up to its end, and what else the cache depends on: model, adapter, tenant salt. Equal
names mean an equal prefix but for chance; what is decided by them may cost time when wrong, never correctness.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence

import xxhash

_TOKEN_BYTES = 4
assert array("I").itemsize == _TOKEN_BYTES


def chain_seed(model: str, lora: str, salt: str) -> int:
    """Where a chain starts. `lora` and `salt` are empty where there is none."""
    parts = [part.encode() for part in (model, lora, salt)]
    return _hash(b"".join(len(part).to_bytes(4, "little") + part for part in parts))


def extend_chain(parent: int, tokens: Sequence[int], block_size: int) -> list[int]:
    """The names of the full blocks in `tokens`, in order; what is left over at the end has none.

    `parent` is the name of the block before, or the chain's seed. Raises OverflowError for an id outside 0..2**32-1.
    """
    return _extend(parent, _packed(tokens), block_size * _TOKEN_BYTES)


class BlockChain:
    """A chain that grows with its text: each token is hashed once."""

    def __init__(self, seed: int, block_size: int) -> None:
        self._block_bytes = block_size * _TOKEN_BYTES
        self._last = seed
        self._rest = b""
        self.hashes: list[int] = []

    def extend(self, tokens: Sequence[int]) -> list[int]:
        """The names of the blocks that these tokens completed. Raises as `extend_chain`, and is then unchanged."""
        data = self._rest + _packed(tokens)
        new = _extend(self._last, data, self._block_bytes)
        self._rest = data[len(new) * self._block_bytes :]
        self._last = new[-1] if new else self._last
        self.hashes += new
        return new


def _extend(parent: int, data: bytes, block_bytes: int) -> list[int]:
    full = len(data) - len(data) % block_bytes
    blocks: Iterable[tuple[bytes]] = struct.iter_unpack(f"{block_bytes}s", memoryview(data)[:full])
    return [parent := _hash(block, parent) for (block,) in blocks]


def _packed(tokens: Sequence[int]) -> bytes:
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _hash(data: bytes, seed: int = 0) -> int:
    name: int = xxhash.xxh3_64_intdigest(data, seed)
    return name
