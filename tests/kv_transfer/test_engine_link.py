"""What an owner knows of the connector inside its engine: settings in, address and counts out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config_security import ClusterTlsConfig
from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from cluster.errors import ConfigError, EngineFailed
from cluster.kv_link import KvLink
from cluster.tls import PLAIN
from kv_transfer.announcement import Announcement, announce
from kv_transfer.engine_link import EngineLink
from kv_transfer.engine_settings import ConnectorSettings, connector_settings, kv_transfer_config
from tests.kv_transfer.conftest import Source


@pytest.fixture
def settings(tmp_path: Path) -> ConnectorSettings:
    return connector_settings(
        KvTransferConfig(lease_s=12.0),
        worker_id="prefill-0",
        epoch=2**40,
        listen_host="0.0.0.0",
        advertise_host="10.0.0.7",
        announce_path=str(tmp_path / "source.json"),
        secret_env="BATON_TICKET_SECRET",
    )


def test_settings_survive_the_way_through_the_engines_configuration(settings: ConnectorSettings) -> None:
    config = json.loads(json.dumps(kv_transfer_config(settings, Role.PREFILL)))
    assert ConnectorSettings.from_extra_config(config["kv_connector_extra_config"]) == settings
    assert (config["kv_role"], config["kv_load_failure_policy"]) == ("kv_producer", "recompute")
    assert kv_transfer_config(settings, Role.DECODE)["kv_role"] == "kv_consumer"


def test_certificates_are_named_on_the_way_into_the_engine(settings: ConnectorSettings) -> None:
    encrypted = replace(settings, tls=ClusterTlsConfig(cert="a.pem", key="a.key", ca="ca.pem"))
    config = json.loads(json.dumps(kv_transfer_config(encrypted, Role.PREFILL)))
    told = ConnectorSettings.from_extra_config(config["kv_connector_extra_config"])
    assert told == encrypted
    with pytest.raises(ConfigError, match=r"a\.pem: cannot be read"):
        told.channels()
    assert settings.channels() is PLAIN


def test_the_secret_is_named_but_never_written(settings: ConnectorSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_TICKET_SECRET", "do-not-write-this-anywhere")
    assert "do-not-write-this-anywhere" not in json.dumps(kv_transfer_config(settings, Role.PREFILL))


def test_a_foreign_extra_config_is_refused_by_name(settings: ConnectorSettings) -> None:
    extra = kv_transfer_config(settings, Role.PREFILL)["kv_connector_extra_config"]
    extra["work_id"] = extra.pop("worker_id")
    with pytest.raises(ConfigError, match="work_id, worker_id"):
        ConnectorSettings.from_extra_config(extra)


async def test_an_owner_finds_counts_and_releases_over_the_link(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "source.json"
    announce(path, Announcement(source.server.address, b"\x01\x02"))
    link: KvLink = EngineLink(path)
    assert await link.address() == source.server.address
    assert await link.fingerprint() == b"\x01\x02"
    unread, read = source.offer((1, 2)), source.offer((3,))
    source.book.claim(read.lease_id, read.epoch, "decode-0/1")
    assert (await link.stats()).pinned_blocks == 3
    for ticket in (unread, read):
        await link.release(ticket.lease_id)
    stats = await link.stats()
    assert (stats.leases, stats.pending_releases, stats.pinned_blocks) == (1, 1, 3), "a claimed lease is the reader's"
    assert source.take_back() == [2, 1] or source.take_back() == [1, 2]
    assert (await link.stats()).pending_releases == 0
    await link.close()
    await link.close()


async def test_an_engine_that_never_announces_itself_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="announce itself"):
        await EngineLink(tmp_path / "source.json", start_s=0.1).address()


async def test_an_engine_that_is_gone_fails_the_call(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "source.json"
    announce(path, Announcement(source.server.address, b""))
    source.server.close()
    link = EngineLink(path, call_s=1.0)
    with pytest.raises(EngineFailed, match="does not answer"):
        await link.stats()
    await link.close()


@pytest.mark.parametrize(
    ("net_device", "listen_host", "used"),
    [(None, "127.0.0.1", "lo"), (None, "0.0.0.0", None), ("eth1", "127.0.0.1", "eth1"), ("eth1", "0.0.0.0", "eth1")],
)
def test_nixl_listens_no_wider_than_the_engine(
    settings: ConnectorSettings, net_device: str | None, listen_host: str, used: str | None
) -> None:
    transfer = KvTransferConfig(net_device=net_device)
    assert replace(settings, transfer=transfer, listen_host=listen_host).net_device == used
