"""The connector's settings, on their way into an engine: from our configuration to vLLM's `kv_transfer_config` and
back.

Everything travels as plain JSON values inside `kv_connector_extra_config`, which vLLM writes to its log: the secret
stays in the environment, only its variable is named. Imports no vllm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from cluster.config_security import ClusterTlsConfig
from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from cluster.errors import ConfigError
from cluster.tls import Channels, cluster_channels

CONNECTOR = "BatonConnector"
MODULE = "kv_transfer.connector.baton_connector"
KV_ROLES = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}
"""vLLM's names for the roles, whichever connector."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def net_device_of(config: KvTransferConfig, host: str) -> str | None:
    """The network interface for NIXL; None leaves it to UCX, which listens on all. An engine that listens on the
    loopback interface does so with NIXL as well."""
    return config.net_device or ("lo" if host in _LOOPBACK else None)


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """`listen_host` is where KvSource listens, `advertise_host` where peers reach it. `announce_path`: the file in
    which the connector tells its owner where it listens. `secret_env`: the environment variable that holds the
    tickets' key. `transfer` and `tls` are sections of our configuration."""

    worker_id: str
    epoch: int
    listen_host: str
    advertise_host: str
    announce_path: str
    secret_env: str
    transfer: KvTransferConfig
    tls: ClusterTlsConfig | None = None

    @property
    def lease_s(self) -> float:
        return self.transfer.lease_s

    @property
    def net_device(self) -> str | None:
        return net_device_of(self.transfer, self.listen_host)

    @property
    def reader_id(self) -> str:
        """Names this engine start to the sources it reads from."""
        return f"{self.worker_id}/{self.epoch}"

    def channels(self) -> Channels:
        """How this engine and its peers reach each other. Raises `ConfigError`."""
        return cluster_channels(self.tls)

    @classmethod
    def from_extra_config(cls, extra: Mapping[str, Any]) -> ConnectorSettings:
        """Raises `ConfigError` for anything but the values that `kv_transfer_config` wrote."""
        names = {field.name for field in fields(cls)}
        if extra.keys() != names:
            differ = ", ".join(sorted(extra.keys() ^ names))
            raise ConfigError(f"kv_connector_extra_config: missing or unknown: {differ}; it is written by Baton only")
        try:
            transfer = KvTransferConfig.model_validate(extra["transfer"])
            tls = None if extra["tls"] is None else ClusterTlsConfig.model_validate(extra["tls"])
        except ValidationError as error:
            raise ConfigError(f"kv_connector_extra_config: {error}; it is written by Baton only") from error
        return cls(**{**extra, "transfer": transfer, "tls": tls})


def kv_transfer_config(settings: ConnectorSettings, role: Role) -> dict[str, Any]:
    """vLLM's engine argument of the same name."""
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": KV_ROLES[role],
        "engine_id": settings.reader_id,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            **{field.name: getattr(settings, field.name) for field in fields(settings)},
            "transfer": settings.transfer.model_dump(mode="json"),
            "tls": None if settings.tls is None else settings.tls.model_dump(mode="json"),
        },
    }


def connector_settings(
    config: KvTransferConfig,
    *,
    worker_id: str,
    epoch: int,
    listen_host: str,
    advertise_host: str,
    announce_path: str,
    secret_env: str,
) -> ConnectorSettings:
    """`config` made concrete for one engine start, in plain text."""
    return ConnectorSettings(
        worker_id=worker_id,
        epoch=epoch,
        listen_host=listen_host,
        advertise_host=advertise_host,
        announce_path=announce_path,
        secret_env=secret_env,
        transfer=config,
    )
