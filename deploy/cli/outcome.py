"""How a command ends: the exit codes, and one clear line on stderr for everything that a user can act on.

Data goes to stdout, messages to stderr, tracebacks nowhere but for our own mistakes. Imports nothing heavy: it is on
the way of `baton --help`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, ParamSpec

import typer

from deploy.cli.credentials import TOKEN, current_credentials, taking_credentials

if TYPE_CHECKING:
    import grpc

Arguments = ParamSpec("Arguments")


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2  # also a configuration that cannot work
    DEGRADED = 3
    NOT_FOUND = 4
    UNAUTHORISED = 5
    CONFLICT = 6
    UNREACHABLE = 7
    TIMED_OUT = 124
    INTERRUPTED = 130


class Stop(Exception):
    """Ends the command with `code`, after `message` on stderr."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code


def command(run: Callable[Arguments, int | None]) -> Callable[Arguments, None]:
    """Makes a function a command: its return value is the exit code, its errors are messages. One that takes an
    endpoint takes credentials for it."""

    @functools.wraps(run)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            _check_texts(kwargs)
            code = run(*args, **kwargs)
        except Stop as stop:
            code = fail(stop.message, stop.code)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        except Exception as error:
            code = _of_the_tree(error)
        raise typer.Exit(code or Exit.OK)

    return taking_credentials(guarded) if "endpoint" in inspect.signature(run).parameters else guarded


def fail(message: str, code: Exit) -> Exit:
    print("\n".join(f"baton: {line}" for line in message.splitlines()), file=sys.stderr)
    return code


def checked_text(text: str, what: str) -> str:
    """`text` itself. Raises `Stop` for bytes that were none: Python hands them on as lone surrogates, which no message
    to a router can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Stop(f"{what}: not UTF-8 text: {text!r:.80}", Exit.USAGE) from error
    return text


def _check_texts(arguments: Mapping[str, object]) -> None:
    """Of what was given to a command. Paths may be any bytes."""
    for name, value in arguments.items():
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, str):
                checked_text(each, name.replace("_", "-"))


def rpc_stop(error: grpc.RpcError, endpoint: str, timeout_s: float) -> Stop:
    """What a failed call to `endpoint` means to the user."""
    import grpc

    code, detail = error.code(), error.details() or "no reason given"
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return Stop(f"{endpoint}: unavailable: {detail}{_perhaps_tls(detail)}", Exit.UNREACHABLE)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Stop(f"{endpoint}: no answer within {timeout_s:g} s; --timeout allows more", Exit.TIMED_OUT)
        case grpc.StatusCode.UNIMPLEMENTED:
            return Stop(f"{endpoint}: answers, but is not a Baton router; name its gRPC port", Exit.NOT_FOUND)
        case grpc.StatusCode.NOT_FOUND:
            return Stop(f"{endpoint}: {detail}", Exit.NOT_FOUND)
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return Stop(
                f"{endpoint}: not allowed: {detail}; your key comes from {TOKEN} or --token-file", Exit.UNAUTHORISED
            )
        case _:
            return Stop(f"{endpoint}: {code.name}: {detail}", Exit.FAILED)


def _perhaps_tls(detail: str) -> str:
    """Something listens there, or it would not have come to a call."""
    if "failed to connect" not in detail:
        return ""
    if current_credentials().ca is None:
        return "; where it speaks TLS, --tls-ca names who signs its certificate"
    return "; does it speak TLS, and with a certificate for this endpoint? BATON_TLS_NAME says for whom else"


def _of_the_tree(error: Exception) -> Exit:
    """Ends with the message of an error that Baton raised on purpose, or with what the system said of a file; anything
    else is a bug and goes on as it is. So does a reader that went away, of whom nobody needs to hear."""
    from cluster.errors import BatonError, ConfigError, DeadlineExceeded

    match error:
        case ConfigError():
            return fail(str(error), Exit.USAGE)
        case DeadlineExceeded():
            return fail(str(error), Exit.TIMED_OUT)
        case BatonError():
            return fail(str(error), Exit.FAILED)
        case OSError(strerror=str(why)) if not isinstance(error, BrokenPipeError):
            return fail(f"{error.filename}: {why}" if error.filename else why, Exit.FAILED)
        case _:
            raise error
