"""With what a command shows a router who it is: a key, and certificates. From options and the environment.

Every command that takes an endpoint takes `--token-file` and `--tls-ca` too, without saying so itself. A key is never
an argument, which others on the machine could read. Imports nothing heavy.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

Arguments = ParamSpec("Arguments")

TOKEN, TOKEN_FILE, TLS_CA = "BATON_TOKEN", "BATON_TOKEN_FILE", "BATON_TLS_CA"
TLS_CERT, TLS_KEY, TLS_NAME = "BATON_TLS_CERT", "BATON_TLS_KEY", "BATON_TLS_NAME"
SYSTEM = "system"

TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", envvar=TOKEN_FILE, help=f"Holds your key. [default: {TOKEN} itself]"),
]
TlsCa = Annotated[
    str | None,
    typer.Option(
        "--tls-ca", metavar="FILE", envvar=TLS_CA, help="Speak TLS; who signs the router's certificate, or 'system'."
    ),
]


@dataclass(frozen=True, slots=True)
class Credentials:
    """`ca` None: no TLS. `name`: for whom the router's certificate must be, where that is not the endpoint's host."""

    token_file: Path | None = None
    ca: str | None = None

    def token(self) -> str:
        """Empty without one. Raises OSError for a file that cannot be read, UnicodeError for what no key can be."""
        read = os.environ.get(TOKEN, "") if self.token_file is None else self.token_file.read_text(encoding="utf-8")
        token = read.strip()
        token.encode("ascii")  # as calls carry it
        return token

    @property
    def name(self) -> str:
        return os.environ.get(TLS_NAME, "")

    def certificates(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Whom to believe, then our own key and certificate, where we have any. Raises OSError."""
        own = [os.environ.get(name) for name in (TLS_KEY, TLS_CERT)]
        key, cert = (None if path is None else Path(path).read_bytes() for path in own)
        return None if self.ca in (None, SYSTEM) else Path(str(self.ca)).read_bytes(), key, cert


_current: ContextVar[Credentials] = ContextVar("credentials")


def current_credentials() -> Credentials:
    """Of the command that runs."""
    return _current.get(None) or Credentials()


def taking_credentials(run: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Gives a command the two options; the command itself sees neither."""
    signature = inspect.signature(run, eval_str=True)

    @functools.wraps(run)
    def credited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        token_file, ca = kwargs.pop("token_file", None), kwargs.pop("tls_ca", None)
        reset = _current.set(
            Credentials(token_file if isinstance(token_file, Path) else None, ca if isinstance(ca, str) else None)
        )
        try:
            run(*args, **kwargs)
        finally:
            _current.reset(reset)

    kind = inspect.Parameter.KEYWORD_ONLY
    ours = [
        inspect.Parameter(name, kind, default=None, annotation=annotation)
        for name, annotation in (("token_file", TokenFile), ("tls_ca", TlsCa))
    ]
    parameters = [*signature.parameters.values(), *ours]
    credited.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    credited.__annotations__ = {each.name: each.annotation for each in parameters}
    return credited
