"""Encrypted channels: what connects, what does not, and certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.config_security import ClusterTlsConfig
from cluster.errors import ConfigError
from cluster.tls import PLAIN, Channels, TlsChannels, TlsFiles, cluster_channels, public_channels
from tests.certificates import Authority, Signed
from tests.unreadable_files import unreadable_files

NAME = "baton"
ANSWERS = health_pb2.HealthCheckResponse.SERVING


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.ours = Authority(folder)
        self.foreign = Authority(folder, "foreign")
        self.signed = self.ours.sign(NAME)

    def files(self, **changed: str | None) -> TlsFiles:
        files = TlsFiles(self.signed.cert, self.signed.key, self.ours.path, NAME)
        return replace(files, **changed)  # type: ignore[arg-type]

    def show(self, content: str) -> None:
        Path(self.signed.cert).write_text(content)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@asynccontextmanager
async def listening(channels: Channels) -> AsyncIterator[str]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = channels.open_port(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def answer(channel: grpc.aio.Channel) -> int | grpc.StatusCode:
    async with channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status
        except grpc.aio.AioRpcError as error:
            return error.code()


def trusting(authority: Authority) -> grpc.ChannelCredentials:
    """Of a client without a certificate."""
    return grpc.ssl_channel_credentials(Path(authority.path).read_bytes())


async def shown_at(address: str) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, port = address.split(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_both_sides_of_one_cluster_reach_each_other(certificates: Certificates) -> None:
    config = ClusterTlsConfig(cert=certificates.signed.cert, key=certificates.signed.key, ca=certificates.ours.path)
    async with listening(cluster_channels(config)) as address:
        assert await answer(cluster_channels(config).dial(address)) == ANSWERS


async def test_an_encrypted_port_answers_nobody_in_plain_text(certificates: Certificates) -> None:
    for ca in (None, certificates.ours.path):
        async with listening(TlsChannels(certificates.files(ca=ca))) as address:
            assert await answer(PLAIN.dial(address)) is grpc.StatusCode.UNAVAILABLE


async def test_who_shows_no_certificate_or_a_foreign_one_is_refused(certificates: Certificates) -> None:
    stranger = certificates.foreign.sign("stranger")
    async with listening(TlsChannels(certificates.files())) as address:
        nothing = grpc.aio.secure_channel(address, trusting(certificates.ours))
        foreign = TlsChannels(certificates.files(cert=stranger.cert, key=stranger.key)).dial(address)
        assert [await answer(nothing), await answer(foreign)] == [grpc.StatusCode.UNAVAILABLE] * 2


async def test_whoever_is_dialled_must_be_of_this_cluster(certificates: Certificates) -> None:
    stranger, other = certificates.foreign.sign(NAME + "-2"), certificates.ours.sign("other")
    for signed in (stranger, other):
        server = TlsFiles(signed.cert, signed.key, certificates.ours.path, NAME)
        async with listening(TlsChannels(server)) as address:
            assert await answer(TlsChannels(certificates.files()).dial(address)) is grpc.StatusCode.UNAVAILABLE


async def test_without_an_authority_for_clients_none_is_asked_for_a_certificate(certificates: Certificates) -> None:
    async with listening(TlsChannels(certificates.files(ca=None))) as address:
        assert await answer(grpc.aio.secure_channel(address, trusting(certificates.ours))) == ANSWERS


async def test_a_new_certificate_is_shown_without_a_restart(certificates: Certificates) -> None:
    channels = TlsChannels(certificates.files(ca=None))
    dialling = TlsChannels(certificates.files())
    async with listening(channels) as address, listening(TlsChannels(certificates.files())) as mutual:
        before = await shown_at(address)
        assert await shown_at(address) == before
        certificates.ours.sign(NAME)
        assert await shown_at(address) != before
        assert await answer(dialling.dial(mutual)) == ANSWERS


async def test_files_that_do_not_fit_together_leave_the_old_ones_in_place(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(TlsChannels(certificates.files(ca=None))) as address:
        before = await shown_at(address)
        for content in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            certificates.show(content)
            assert await shown_at(address) == before
        os.replace(certificates.foreign.sign("half").cert, certificates.signed.cert)  # its key has not come yet
        assert await shown_at(address) == before
        certificates.ours.sign(NAME)
        assert await shown_at(address) != before
    assert {record.levelname for record in caplog.records if "stay as they were" in record.getMessage()} == {"ERROR"}


async def test_certificates_that_could_not_be_read_for_a_moment_are_shown_though_they_changed_no_more(
    certificates: Certificates,
) -> None:
    async with listening(TlsChannels(certificates.files(ca=None))) as address:
        before = await shown_at(address)
        certificates.ours.sign(NAME)
        with unreadable_files():
            assert await shown_at(address) == before
        assert await shown_at(address) != before


@pytest.mark.parametrize("broken", ["cert", "key", "ca"])
def test_at_the_start_certificates_must_be_good(certificates: Certificates, tmp_path: Path, broken: str) -> None:
    junk = tmp_path / "junk.pem"
    with pytest.raises(ConfigError, match=r"junk.pem: cannot be read"):
        TlsChannels(certificates.files(**{broken: str(junk)}))
    junk.write_text("junk")
    with pytest.raises(ConfigError, match="not PEM files that fit together"):
        TlsChannels(certificates.files(**{broken: str(junk)}))


def test_a_key_of_another_certificate_is_refused(certificates: Certificates) -> None:
    other: Signed = certificates.ours.sign("other")
    with pytest.raises(ConfigError, match="fit together"):
        TlsChannels(certificates.files(key=other.key))


def test_without_a_section_everything_is_plain() -> None:
    assert cluster_channels(None) is PLAIN
    assert public_channels(None) is PLAIN
