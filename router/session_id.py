"""Which conversation the request that is being served belongs to, as its client names it.

The edges set it for the task of each call; whatever runs in that task can read it, so the frontend in between need not
know it.
"""

from __future__ import annotations

from contextvars import ContextVar

from router.caller import checked_word

HEADER = "x-session-id"
"""Of an HTTP request, and of a gRPC call's metadata."""

_session: ContextVar[str] = ContextVar("session", default="")


def current_session() -> str:
    """Empty without one."""
    return _session.get()


def enter_session(name: str) -> None:
    """For the rest of this task; empty: in none. Raises `InvalidRequest` for a name that no client should use."""
    _session.set(checked_session(name))


def checked_session(name: str) -> str:
    """Raises `InvalidRequest` for a name that no client should use."""
    return checked_word(HEADER, name)
