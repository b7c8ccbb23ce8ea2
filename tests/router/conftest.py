"""A store that the tests of this folder may kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.redis_server import RedisServer


@pytest.fixture(params=[False, True], ids=["comes back empty", "comes back with its content"])
def store_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", durable=request.param)
    yield server
    server.close()
