"""The store that a configuration names: the one place where an implementation is chosen.

It must not know what is shared.
"""

from __future__ import annotations

from cluster.clock import Clock
from cluster.config import secret
from cluster.config_store import StoreConfig
from cluster.memory_store import MemoryStore
from cluster.store import Store


def open_store(config: StoreConfig, cluster: str, clock: Clock) -> Store:
    """`cluster`: its configured name. Nothing is connected yet. Raises `ConfigError`: the password is unset."""
    if not config.shared:
        return MemoryStore(config, clock.now)
    from cluster.redis_store import RedisStore  # here: a router without Redis needs no client of it

    password = None if config.password_env is None else secret(config.password_env).decode()
    return RedisStore(config, cluster, password)
