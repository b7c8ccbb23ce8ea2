"""KV caches of known bytes in host memory, and tickets for their blocks, for whoever moves blocks without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from kv_transfer.block_permit import TicketRule
from kv_transfer.ticket import Ticket, seal
from kv_transfer.transport import Layout, Region

Cache = np.ndarray[Any, np.dtype[np.uint8]]

RULE = TicketRule(b"a secret of both ends", epoch=7, block_size=32)


def empty_cache(layers: int, blocks: int, block_bytes: int) -> Cache:
    """Every page of it is there."""
    cache: Cache = np.empty((layers, blocks, block_bytes), np.uint8)
    cache[:] = 0
    return cache


def filled_cache(layers: int, blocks: int, block_bytes: int) -> Cache:
    """Each block of each layer is filled with its value of `block_values`."""
    cache: Cache = np.empty((layers, blocks, block_bytes), np.uint8)
    cache[:] = block_values(layers, blocks)[:, :, None]
    return cache


def block_values(layers: int, blocks: int) -> Cache:
    """Never 0; neighbours differ."""
    return (np.arange(layers * blocks) % 251 + 1).astype(np.uint8).reshape(layers, blocks)


def layout_of(cache: Cache) -> Layout:
    """Layer first, as vLLM does on CPU: the layers share one storage."""
    base, (layer, block, _) = cache.ctypes.data, cache.strides
    layers, blocks, block_bytes = cache.shape
    return Layout(tuple(Region(base + i * layer, block, block_bytes, blocks) for i in range(layers)))


def sealed_ticket(block_ids: tuple[int, ...], epoch: int = RULE.epoch, secret: bytes = RULE.secret) -> bytes:
    ticket = Ticket(
        attempt_id="request/prefill/1",
        lease_id="lease",
        worker_id="prefill-0",
        epoch=epoch,
        num_tokens=len(block_ids) * RULE.block_size,
        groups=(block_ids,),
        fingerprint=b"fingerprint",
        source="127.0.0.1:1",
        prompt_digest=b"digest",
    )
    return seal(ticket, secret)
