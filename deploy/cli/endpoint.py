"""A router's answer, or one clear reason why there is none."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from deploy.cli.bearer import Bearer
from deploy.cli.credentials import Credentials, current_credentials
from deploy.cli.outcome import Exit, Stop, rpc_stop
from protos.baton.v1.admin_pb2_grpc import AdminStub

Answer = TypeVar("Answer")

_DIRECT = [("grpc.enable_http_proxy", 0)]  # what the check below reached is what the calls must reach


@contextmanager
def connected(endpoint: str, timeout_s: float) -> Iterator[grpc.Channel]:
    """A channel to `endpoint` (host:port), with the command's credentials. Raises `Stop` when nothing answers there
    within `timeout_s` seconds, or the credentials cannot be read."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise Stop(f"--endpoint {endpoint}: expected HOST:PORT, such as 127.0.0.1:9000", Exit.USAGE)
    _check_reachable(host.strip("[]"), int(port), endpoint, timeout_s)
    credentials = current_credentials()
    try:
        token, opened = credentials.token(), _open(endpoint, credentials)
    except (OSError, UnicodeError) as error:
        raise Stop(f"credentials: {error}", Exit.USAGE) from error
    with opened as channel:
        yield grpc.intercept_channel(channel, Bearer(token)) if token else channel


def _open(endpoint: str, credentials: Credentials) -> grpc.Channel:
    """Raises OSError for certificates that cannot be read."""
    if credentials.ca is None:
        return grpc.insecure_channel(endpoint, _DIRECT)
    named = [("grpc.ssl_target_name_override", credentials.name)] if credentials.name else []
    encrypted = grpc.ssl_channel_credentials(*credentials.certificates())
    return grpc.secure_channel(endpoint, encrypted, [*_DIRECT, *named])


def ask_admin(endpoint: str, timeout_s: float, call: Callable[[AdminStub], Answer]) -> Answer:
    """What `call` gets from the router's Admin service; it must pass the timeout on. Raises `Stop` where it gets
    nothing."""
    with connected(endpoint, timeout_s) as channel:
        try:
            return call(AdminStub(channel))
        except grpc.RpcError as error:
            raise rpc_stop(error, endpoint, timeout_s) from error


def _check_reachable(host: str, port: int, endpoint: str, timeout_s: float) -> None:
    """A plain connection first: unlike a failed call, it tells nobody there from nobody answering, and says why."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except (OSError, UnicodeError) as error:  # the latter from a name that no host can have
        why = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else _reason(error)
        hint = "`baton up FILE` starts a cluster and prints its endpoint"
        raise Stop(f"{endpoint}: cannot connect: {why}; {hint}", Exit.UNREACHABLE) from error


def _reason(error: OSError | UnicodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
