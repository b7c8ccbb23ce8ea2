"""KV caches of known bytes for the transfer benchmark, in the host's memory or in a GPU's.

Each block of each layer is filled with one value, so that a read that brought other blocks is noticed. On a GPU a cache
is plain memory of torch, as an engine's is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.demo_model import SHAPE
from kv_transfer.transport import Layout, Region

BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class CacheShape:
    """`layer_block_bytes`: keys and values of `BLOCK_TOKENS` tokens in one layer."""

    layers: int
    layer_block_bytes: int
    blocks: int
    device: str = "cpu"

    @property
    def block_bytes(self) -> int:
        return self.layers * self.layer_block_bytes


def demo_shape() -> CacheShape:
    """The demo model's: small blocks, so that what each costs shows."""
    return CacheShape(SHAPE.layers, 2 * SHAPE.kv_heads * SHAPE.head_dim * BLOCK_TOKENS * 2, 4096)


def llama_shape() -> CacheShape:
    """Llama 3.1 8B's 32 layers of 8 KV heads of 128, in two bytes: 4 MiB a block; 512 of them, 2 GiB, on a GPU."""
    return CacheShape(32, 2 * 8 * 128 * BLOCK_TOKENS * 2, 512, "cuda")


class KvCache:
    """`layout` describes it; it stays where it is for as long as this is kept."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        size = (shape.layers, shape.blocks, shape.layer_block_bytes)
        self._bytes: Any
        if shape.device == "cpu":
            self._bytes, address = (host := np.zeros(size, np.uint8)), host.ctypes.data
        else:
            import torch

            self._bytes = torch.zeros(size, dtype=torch.uint8, device=shape.device)
            address = self._bytes.data_ptr()
        layer = shape.blocks * shape.layer_block_bytes
        places = (address + n * layer for n in range(shape.layers))
        regions = tuple(Region(at, shape.layer_block_bytes, shape.layer_block_bytes, shape.blocks) for at in places)
        self.layout = Layout(regions, "DRAM" if shape.device == "cpu" else "VRAM")

    def fill(self) -> None:
        self._bytes[:] = self._known()[:, :, None]
        self._settle()

    def wipe(self) -> None:
        self._bytes[:] = 0xFF
        self._settle()

    def holds(self, source: tuple[int, ...], target: tuple[int, ...]) -> bool:
        """Whether blocks `target` are a filled cache's blocks `source`."""
        known = self._known()
        return all(
            bool((self._bytes[n, list(target)] == known[n, list(source), None]).all()) for n in range(self.shape.layers)
        )

    def _known(self) -> Any:
        """The byte that fills each block of each layer."""
        count = self.shape.layers * self.shape.blocks
        known = (np.arange(count) % 251 + 1).astype(np.uint8).reshape(self.shape.layers, self.shape.blocks)
        if self.shape.device == "cpu":
            return known
        import torch

        return torch.from_numpy(known).to(self.shape.device)

    def _settle(self) -> None:
        """NIXL and copies on other streams must find what was written here."""
        if self.shape.device != "cpu":
            import torch

            torch.cuda.synchronize()
