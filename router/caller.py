"""Who sends a request, as its headers say: tenant and priority class; and what a refusal has to tell that client.

An edge names the caller of the task that serves a request; whatever runs for the request finds it there, behind a
frontend that knows nothing of tenants too. Which classes exist, and who may use them, is admission's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass

from cluster.cache_salt import mixed
from cluster.config_security import NO_TENANT
from cluster.errors import BatonError, InvalidRequest, retry_after_s
from cluster.tracing import TraceContext

TENANT_HEADER = "x-tenant-id"
PRIORITY_HEADER = "x-priority-class"

_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,63}")
_LONGEST_WORD = 256
WORD_RULE = f"at most {_LONGEST_WORD} printable ASCII characters"


@dataclass(slots=True, eq=False)
class Caller:
    """One for each request at an edge; all choices of that request share it. `priority` empty: the default class.

    `retry_after_s`: whole seconds after which to come back, once a refusal has said so. `cache_salt` keeps cached
    prefixes apart: who has the same one shares them.
    """

    tenant: str = NO_TENANT
    priority: str = ""
    retry_after_s: int | None = None
    cache_salt: str = ""

    def salted(self, wished: str) -> str:
        """The salt of a request whose client asks for the salt `wished`, empty for none."""
        return mixed(self.cache_salt, wished)

    trace: TraceContext | None = None
    """Where requests are traced."""
    deadline: float | None = None
    """The router's clock by which its client wants the answer; None: whenever."""
    first_token: float | None = None
    """The router's clock when the first of its tokens came."""
    error: BatonError | None = None
    """The first of which it heard: a frontend between here and the client may lose it, or its words."""

    def until(self, now: float, most_s: float) -> float:
        """Its deadline, or so many seconds from now if that comes first."""
        return now + most_s if self.deadline is None else min(self.deadline, now + most_s)

    def hear(self, error: BaseException) -> None:
        """The request, or a choice of it, is refused or has failed: the longest time to come back counts."""
        if self.error is None and isinstance(error, BatonError):
            self.error = copy(error)  # the words alone: the error itself keeps the frames that it went through
        seconds = retry_after_s(error)
        if seconds is not None:
            self.retry_after_s = max(seconds, self.retry_after_s or 0)


_caller: ContextVar[Caller] = ContextVar("caller")


def caller_of(headers: Iterable[tuple[str | bytes, str | bytes]]) -> Caller:
    """Who the headers say it is: for `guard` to believe or not. Raises `InvalidRequest` for a name that is none, or
    given twice."""
    found: dict[str, str] = {}
    for key, value in headers:
        name = text_of(key).lower()
        if name in (TENANT_HEADER, PRIORITY_HEADER):
            if name in found:
                raise InvalidRequest(f"{name} is given twice: send it once")
            found[name] = _checked(name, text_of(value).strip())
    return Caller(found.get(TENANT_HEADER, NO_TENANT), found.get(PRIORITY_HEADER, ""))


def is_word(value: str) -> bool:
    """Whether a client may call something of its own this: it comes back in logs, records and workers' messages."""
    return len(value) <= _LONGEST_WORD and value.isascii() and value.isprintable()


def checked_word(what: str, value: str) -> str:
    """Raises `InvalidRequest` for what `is_word` says no to."""
    if not is_word(value):
        raise InvalidRequest(f"{what}: {WORD_RULE}, got {len(value)}")
    return value


def name_caller(caller: Caller) -> None:
    """For the current task, and those that it starts from now on."""
    _caller.set(caller)


def current_caller() -> Caller:
    """Who the current task serves; a new anonymous one where no edge has said."""
    return _caller.get(None) or Caller()


def _checked(name: str, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise InvalidRequest(f"{name}: 1 to 64 letters, digits, '-', '_' or '.', the first a letter or digit")
    return value


def text_of(value: str | bytes) -> str:
    """Of a header's name or value."""
    return value.decode("latin-1") if isinstance(value, bytes) else value
