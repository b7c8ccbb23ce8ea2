"""What guards the edges of one router, made from its configuration: who gets in, and how connections are encrypted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.cache_salt import CacheSalts
from cluster.config import Config, secret
from cluster.key_file import CurrentKeys
from cluster.tls import PLAIN, Channels, public_channels
from router.guard import Guard


@dataclass(frozen=True, slots=True)
class Defence:
    guard: Guard = field(default_factory=Guard)
    channels: Channels = PLAIN


OPEN = Defence()
"""Anyone may do anything, in plain text."""


def defence_of(config: Config, now: Callable[[], float]) -> Defence:
    """Raises `ConfigError`: keys or certificates that cannot be read, or no secret to make salts from."""
    security = config.security
    keys = CurrentKeys(security, now).ring if security.guarded else None
    salts = CacheSalts(secret(security.ticket_secret_env))
    return Defence(Guard(keys, salts, config.admission), public_channels(security.tls))
