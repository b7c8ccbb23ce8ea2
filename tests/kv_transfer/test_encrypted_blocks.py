"""KV blocks between workers that speak TLS: they land as they do in plain text, and for nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import TransferFailed
from cluster.tls import Channels, TlsChannels, TlsFiles
from tests.certificates import Authority
from tests.kv_transfer.grpc_ends import READ, reading_end, writing_end

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ours(tmp_path: Path) -> Channels:
    return channels_of(Authority(tmp_path))


def channels_of(authority: Authority) -> Channels:
    signed = authority.sign("baton")
    return TlsChannels(TlsFiles(signed.cert, signed.key, authority.path, "baton"))


async def test_blocks_land_over_an_encrypted_channel(ours: Channels) -> None:
    async with reading_end(ours) as reader, writing_end(channels=ours) as writer:
        peer = reader.transport.connect(writer.endpoint)
        await reader.transport.probe(peer)
        await reader.transport.read(peer, READ)
        assert reader.landed()


async def test_a_reader_in_plain_text_gets_no_byte(ours: Channels) -> None:
    async with reading_end() as reader, writing_end(channels=ours) as writer:
        with pytest.raises(TransferFailed):
            await reader.transport.read(reader.transport.connect(writer.endpoint), READ)
        assert not reader.landed()


async def test_a_reader_of_another_cluster_gets_no_byte(ours: Channels, tmp_path: Path) -> None:
    other = channels_of(Authority(tmp_path, "other"))
    async with reading_end(other) as reader, writing_end(channels=ours) as writer:
        with pytest.raises(TransferFailed):
            await reader.transport.probe(reader.transport.connect(writer.endpoint))
