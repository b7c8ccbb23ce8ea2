"""Our own errors over gRPC between engines: a refusal carries its class by name, so that the caller raises it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from cluster.errors import BatonError, ConfigError
from cluster.host_port import host_port
from cluster.tls import Channels

ERROR_KEY = "baton-error"
"""The trailing metadata that names the class."""


def refuse(context: grpc.ServicerContext, status: grpc.StatusCode, error: BatonError) -> NoReturn:
    """Ends the call."""
    context.set_trailing_metadata(((ERROR_KEY, type(error).__name__),))
    context.abort(status, str(error))


def kinds(*classes: type[BatonError]) -> Mapping[str, type[BatonError]]:
    """The refusals that a caller knows, by name."""
    return {kind.__name__: kind for kind in classes}


def refusal_kind(error: grpc.aio.AioRpcError, known: Mapping[str, type[BatonError]]) -> type[BatonError] | None:
    """None where the peer named no class that the caller knows."""
    trailer: Any = error.trailing_metadata() or ()
    return known.get(str(dict(trailer).get(ERROR_KEY)))


def listen(server: grpc.Server, service: str, channels: Channels, listen_host: str, advertise_host: str) -> str:
    """Opens a free port. What peers dial: the advertised host with that port. Raises `ConfigError` where it cannot
    listen."""
    try:
        port = channels.open_port(server, host_port(listen_host, 0))
    except RuntimeError as error:
        raise ConfigError(f"{service} cannot listen on {listen_host}: {error}; set listen_host") from error
    return host_port(advertise_host, port)
