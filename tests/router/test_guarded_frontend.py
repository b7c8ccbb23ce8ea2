"""The real application behind the HTTP edge: each of its routes, found by asking it, is refused without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.routing import BaseRoute

from cluster.clock import RealClock
from cluster.config import parse_config
from cluster.membership import MemoryDirectory
from router.http_edge import ROUTES
from router.replica import RouterReplica, start_replica
from tests.keys import made
from tests.router.simulated_cluster import SECRET

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),  # vLLM's imports warn
    pytest.mark.timeout(120),
]

USER, VIEW = made(tenant="acme"), made(role="view")
OURS = {(method, path) for method, paths in ROUTES.items() for path in paths}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(demo_model: Path) -> AsyncIterator[RouterReplica]:
    config = parse_config(
        {
            "model": {"path": str(demo_model), "max_model_len": 512},
            "router": {"grpc_port": 0},
            "security": {"keys": [USER.raw, VIEW.raw]},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(config.security.ticket_secret_env, SECRET)
        replica = await start_replica(config, MemoryDirectory(RealClock()), RealClock())
    yield replica
    await replica.close(grace_s=0)


def routes(app: Any) -> list[tuple[str, str]]:
    """Method and path of each, with something in the place of its parameters."""

    def found(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in routes:
            path = prefix + getattr(route, "path", "").replace("{", "").replace("}", "").replace(":path", "")
            yield from ((method, path) for method in getattr(route, "methods", None) or ())
            yield from found(getattr(route, "routes", None) or [], path)

    return sorted(set(found(app.routes)))


async def test_every_route_is_refused_without_a_key_and_only_ours_exist_with_one(replica: RouterReplica) -> None:
    there = routes(replica._frontend.app)
    assert len(there) > 20, "the application has lost its routes, or this test the way to find them"
    assert set(there) >= OURS
    transport = httpx.ASGITransport(replica.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        for method, path in there:
            if path == "/health":
                continue
            assert (await client.request(method, path, content=b"{}")).status_code == 401, (method, path)
            for key, expected in ((USER, 404), (VIEW, 403)):
                if ((method, path) in OURS and key is USER) or path == "/metrics":
                    continue
                answer = await client.request(method, path, content=b"{}", headers={"authorization": key.bearer})
                assert answer.status_code == expected, (method, path)
