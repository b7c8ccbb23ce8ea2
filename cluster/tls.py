"""How the cluster's gRPC ports are opened and dialled: in plain text, or with TLS by certificates from files.

The only place that makes gRPC channels and ports. Certificates are read again when their files change: a port then
shows the new one to whoever connects next, a channel is made with what is there at that time.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from cluster.config_security import ClusterTlsConfig, TlsConfig
from cluster.errors import ConfigError
from cluster.watched_files import WatchedFiles, read_file

logger = logging.getLogger(__name__)

Options = Sequence[tuple[str, int | str]]


class Channels(Protocol):
    """One side's way to open and to dial ports."""

    def open_port(self, server: grpc.Server | grpc.aio.Server, address: str) -> int:
        """The port it listens on. Raises RuntimeError, as gRPC does, where it cannot."""
        ...

    def dial(self, address: str, options: Options = ()) -> grpc.aio.Channel: ...


class _PlainChannels:
    def open_port(self, server: grpc.Server | grpc.aio.Server, address: str) -> int:
        return server.add_insecure_port(address)

    def dial(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address, options=tuple(options))


PLAIN: Channels = _PlainChannels()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files. `ca` signs the other side's certificates; None asks for none. `name`: what the certificate of
    whoever is dialled must be for, wherever it is."""

    cert: str
    key: str
    ca: str | None = None
    name: str = ""


class TlsChannels:
    """Raises `ConfigError` where the files cannot be read, or are no PEM."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._dialled_with = _Current(files)

    def open_port(self, server: grpc.Server | grpc.aio.Server, address: str) -> int:
        asks, shown = self._files.ca is not None, _Current(self._files)
        credentials = grpc.dynamic_ssl_server_credentials(
            shown.loaded.server(),
            shown.changed,  # type: ignore[arg-type]  # that None means no change is not in its types
            asks,
        )
        return server.add_secure_port(address, credentials)

    def dial(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        self._dialled_with.changed()
        named = [*options, ("grpc.ssl_target_name_override", self._files.name)]
        return grpc.aio.secure_channel(address, self._dialled_with.loaded.channel(), options=named)


def cluster_channels(config: ClusterTlsConfig | None) -> Channels:
    """Between the parts of one cluster. Raises `ConfigError`."""
    return PLAIN if config is None else TlsChannels(TlsFiles(config.cert, config.key, config.ca, config.name))


def public_channels(config: TlsConfig | None) -> Channels:
    """Of the API that clients use. Raises `ConfigError`."""
    return PLAIN if config is None else TlsChannels(TlsFiles(config.cert, config.key, config.client_ca))


@dataclass(frozen=True, slots=True)
class _Loaded:
    cert: bytes
    key: bytes
    ca: bytes | None

    def server(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.ca)

    def channel(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


class _Current:
    """What the files hold now; asked by gRPC's threads at each handshake."""

    def __init__(self, files: TlsFiles) -> None:
        self._paths = [path for path in (files.cert, files.key, files.ca) if path is not None]
        self._files = files
        self._watched = WatchedFiles(self._paths, self._load, "the certificates")

    @property
    def loaded(self) -> _Loaded:
        return self._watched.content

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates, once; None while they are as before. What cannot be read leaves them as they are."""
        if not self._watched.renew():
            return None
        logger.info("%s has changed: new connections use it", self._files.cert)
        return self.loaded.server()

    def _load(self) -> _Loaded:
        cert, key = read_file(self._files.cert, "security"), read_file(self._files.key, "security")
        ca = None if self._files.ca is None else read_file(self._files.ca, "security")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # While both are being replaced they do not fit.
            context.load_cert_chain(self._files.cert, self._files.key)
            if ca is not None:
                context.load_verify_locations(cadata=ca.decode("ascii"))
        except (OSError, ValueError) as error:
            names = ", ".join(self._paths)
            raise ConfigError(f"security: {names}: not PEM files that fit together: {error}") from error
        return _Loaded(cert, key, ca)
