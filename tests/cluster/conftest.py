"""Stores that the tests of this folder share: one in memory, one in a real server."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from cluster.config_store import StoreConfig
from cluster.memory_store import MemoryStore
from cluster.redis_store import RedisStore
from cluster.store import Store
from tests.cluster.redis_server import RedisServer

OpenStore = Callable[..., Store]
"""Opens one more view of the same store. Takes keys of `StoreConfig`."""

_names = itertools.count()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Shared by all tests that leave it running; each uses a cluster name of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture(params=["memory", "redis"])
async def open_view(request: pytest.FixtureRequest) -> AsyncIterator[OpenStore]:
    cluster = f"test-{next(_names)}"
    opened: list[Store] = []

    def open_one(**keys: object) -> Store:
        if request.param == "memory" and opened:
            return opened[0]
        url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_server").url
        config = StoreConfig.model_validate({"url": url, "deadline_s": 5.0, **keys})
        if request.param == "memory":
            opened.append(MemoryStore(config, time.monotonic))
        else:
            opened.append(RedisStore(config, cluster))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()
