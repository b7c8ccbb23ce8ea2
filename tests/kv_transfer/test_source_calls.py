"""The way from a reader to a KvSource: straight, whatever the host says of proxies, and kept open by pings."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cluster.rpc_options import CHANNEL_OPTIONS
from cluster.tls import PLAIN
from kv_transfer.source_client import SourceClient
from tests.kv_transfer.conftest import Source

CALL_S = 2.0


async def test_a_source_is_reached_past_the_proxy_of_its_host(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = SourceClient(source.server.address, "decode-0/1", CALL_S)
    assert await client.leases() == ()
    await client.close()


@pytest.mark.engine  # seconds of silence: gRPC pings once a second at most, and forgives the first three pings
async def test_a_source_does_not_hang_up_on_a_reader_that_asks_whether_it_is_there(source: Source) -> None:
    options = {**dict(CHANNEL_OPTIONS), "grpc.keepalive_time_ms": 1_000}
    async with PLAIN.dial(source.server.address, list(options.items())) as channel:
        await asyncio.wait_for(channel.channel_ready(), CALL_S)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 8.0)
