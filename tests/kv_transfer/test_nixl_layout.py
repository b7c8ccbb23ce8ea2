"""What of our own memory NIXL is told."""

from __future__ import annotations

import numpy as np
import pytest

from kv_transfer.nixl_agent import NixlAgent, Spans
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.transport import Layout, Region
from tests.kv_transfer.nixl_peers import BLOCK_BYTES, BLOCKS, LAYERS


def test_no_byte_behind_the_cache_is_offered_where_layers_lie_within_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = np.zeros((BLOCKS, LAYERS, BLOCK_BYTES), np.uint8)
    base, (block, layer, _) = cache.ctypes.data, cache.strides
    layout = Layout(tuple(Region(base + i * layer, block, BLOCK_BYTES, BLOCKS) for i in range(LAYERS)))
    ends: list[int] = []
    really = NixlAgent.register

    def register(agent: NixlAgent, spans: Spans, memory: str) -> object:
        ends.extend(int(address + size) for address, size, _ in spans if base <= address < base + cache.nbytes)
        return really(agent, spans, memory)

    monkeypatch.setattr(NixlAgent, "register", register)
    NixlTransport(layout, "lo").close()
    assert len(ends) == 2 * LAYERS, "for the agent that serves and the one that reads"
    assert max(ends) == base + cache.nbytes
