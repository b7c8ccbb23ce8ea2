"""Redis frozen, killed and restarted under load: every call ends in time, no request fails, nothing counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.clock import RealClock
from cluster.config_store import StoreConfig
from cluster.errors import StoreUnavailable
from cluster.quota import Claim, Granted, Limits, Returned
from cluster.redis_store import RedisStore
from cluster.store import Changes, DrainMark, Reserved
from cluster.store_mirror import StoreMirror
from tests.cluster.redis_server import RedisServer
from tests.waiting import eventually, running_time

PLENTY = Limits(concurrent=10_000)


@pytest.fixture(params=[False, True], ids=["comes back empty", "comes back with its content"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", durable=request.param)
    yield server
    server.close()


def config_of(server: RedisServer, **keys: float) -> StoreConfig:
    return StoreConfig.model_validate({"url": server.url, "period_s": 0.02, "deadline_s": 0.2, "lease_s": 30.0, **keys})


class Router:
    """A mirror with its background task, and the load of one router."""

    def __init__(self, name: str, server: RedisServer) -> None:
        config = config_of(server)
        self.mirror = StoreMirror(RedisStore(config, "test"), name, config, RealClock())
        self._name = name
        self._task = asyncio.create_task(self.mirror.run())
        self.served = 0
        self.slowest_s = 0.0
        self.live: list[Claim] = []

    async def serve(self, requests: int) -> None:
        """Each claims, reserves, pins, records; every second one stays live."""
        async with running_time() as ran_s:
            for n in range(requests):
                claim = Claim("acme", f"{self._name}-{self.served}", 10, PLENTY)
                started = ran_s()
                assert isinstance(await self.mirror.claim(claim), Granted)
                self.slowest_s = max(self.slowest_s, ran_s() - started)
                self.live.append(claim)
                if n % 2:
                    ended = self.live.pop(0)
                    self.mirror.give_back(Returned("acme", ended.claim_id, PLENTY))
                self.mirror.reserve("w1", Reserved(10 * len(self.live), len(self.live)))
                self.mirror.pin(f"session {n % 50}", "w1")
                self.mirror.record(claim.claim_id, b"served")
                self.served += 1
                await asyncio.sleep(0)

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self.mirror.leave()


@pytest.fixture
async def routers(server: RedisServer) -> AsyncIterator[tuple[Router, Router]]:
    pair = Router("a", server), Router("b", server)
    yield pair
    for router in pair:
        await router.stop()


def claims_in(server: RedisServer) -> set[str]:
    with server.client() as client:
        return {member.decode() for key in client.keys("*claims:acme") for member in client.zrange(key, 0, -1)}


async def test_a_kill_in_mid_load_fails_no_request_and_counts_nothing_twice(
    server: RedisServer, routers: tuple[Router, Router]
) -> None:
    a, b = routers
    load = [asyncio.create_task(router.serve(2_000)) for router in routers]
    await eventually(lambda: min(a.served, b.served) > 200)
    server.kill()
    await eventually(lambda: a.mirror.health.degraded and b.mirror.health.degraded)
    during = a.served
    await eventually(lambda: a.served > during + 200)
    server.restart()
    await asyncio.gather(*load)
    assert (a.served, b.served) == (2_000, 2_000)
    assert max(a.slowest_s, b.slowest_s) < 2.0
    await eventually(lambda: not a.mirror.health.degraded and not b.mirror.health.degraded)

    for one, other in ((a, b), (b, a)):
        mine = Reserved(10 * len(one.live), len(one.live))
        await eventually(lambda mirror=other.mirror, mine=mine: mirror.reserved_elsewhere("w1") == mine)  # type: ignore[misc]
    live = {claim.claim_id for router in routers for claim in router.live}
    await eventually(lambda: claims_in(server) == live)
    assert a.mirror.health.dropped == 0


async def test_a_drain_mark_survives_the_store(server: RedisServer, routers: tuple[Router, Router]) -> None:
    a, b = routers
    mark = DrainMark("w9", "kernel update", "drain-1", 1_700_000_000.5)
    await a.mirror.mark(mark)
    await eventually(lambda: "w9" in b.mirror.marks)
    server.kill()
    await eventually(lambda: b.mirror.health.degraded)
    assert "w9" in b.mirror.marks
    server.restart()
    await eventually(lambda: not (a.mirror.health.degraded or b.mirror.health.degraded))

    def stored() -> bool:
        with server.client() as client:
            return any(client.hexists(key, "w9") for key in client.keys("*drain"))

    await eventually(stored)
    await eventually(lambda: a.mirror.marks == b.mirror.marks == {"w9": mark})


async def test_a_frozen_server_holds_nobody_longer_than_the_deadline(redis_server: RedisServer) -> None:
    store = RedisStore(config_of(redis_server), "frozen")
    await store.exchange("a", Changes())
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.exchange("a", Changes()),
        lambda: store.claim(Claim("acme", "1", 10, PLENTY)),
        lambda: store.mark(DrainMark("w", "why")),
        lambda: store.unmark("w"),
        lambda: store.recall("r"),
        lambda: store.leave("a"),
    ]
    async with running_time() as ran_s:
        with redis_server.frozen():
            for call in calls:
                started = ran_s()
                with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:\d+/0: no answer in 0\.2 s"):
                    await call()
                assert ran_s() - started < 1.5
    assert (await store.exchange("a", Changes())).routers == 1
    await store.close()


async def test_a_burst_of_calls_at_a_frozen_server_ends_in_time_too(redis_server: RedisServer) -> None:
    config = config_of(redis_server)
    mirror = StoreMirror(RedisStore(config, "burst"), "a", config, RealClock())
    await mirror.exchange()
    async with running_time() as ran_s:
        with redis_server.frozen():
            verdicts = await asyncio.gather(*(mirror.claim(Claim("acme", str(n), 1, PLENTY)) for n in range(500)))
            assert verdicts == [Granted()] * 500
            assert ran_s() < 3.0
            assert mirror.health.degraded
    await eventually(lambda: _exchanged(mirror))
    await mirror.leave()


async def _exchanged(mirror: StoreMirror) -> bool:
    await mirror.exchange()
    return not mirror.health.degraded


async def test_more_claims_at_once_than_connections_only_wait_their_turn(redis_server: RedisServer) -> None:
    store = RedisStore(config_of(redis_server, deadline_s=10.0), "many")
    verdicts = await asyncio.gather(*(store.claim(Claim("acme", str(n), 1, PLENTY)) for n in range(1_000)))
    assert set(verdicts) == {Granted()}
    await store.close()


async def test_a_server_that_was_never_there_is_an_outage_not_a_crash() -> None:
    config = StoreConfig(url="redis://127.0.0.1:1/0", deadline_s=0.2)
    mirror = StoreMirror(RedisStore(config, "absent"), "a", config, RealClock())
    await mirror.exchange()
    assert "127.0.0.1:1" in mirror.health.reason
    assert isinstance(await mirror.claim(Claim("acme", "1", 10, Limits(concurrent=1))), Granted)
    await mirror.leave()


async def test_a_wrong_password_says_so(redis_server: RedisServer) -> None:
    store = RedisStore(config_of(redis_server), "locked", password="wrong-password-of-nobody")
    with pytest.raises(StoreUnavailable, match=r"(?i)auth|password"):
        await store.recall("r")
    await store.close()


async def test_scripts_that_the_server_has_forgotten_are_sent_again(redis_server: RedisServer) -> None:
    store = RedisStore(config_of(redis_server), "flushed")
    assert await store.claim(Claim("acme", "1", 10, PLENTY)) == Granted()
    with redis_server.client() as client:
        client.script_flush()
    assert await store.claim(Claim("acme", "2", 10, PLENTY)) == Granted()
    await store.close()


async def test_what_is_known_of_a_tenants_claims_expires_when_nothing_more_is_said(redis_server: RedisServer) -> None:
    store = RedisStore(config_of(redis_server, lease_s=30.0), "expiring")
    limits = Limits(tokens_per_s=10.0, token_depth=1_000)
    assert await store.claim(Claim("acme", "lives", 10, limits)) == Granted()
    noted = (Claim("acme", "ended", 10, limits),)
    await store.exchange("a", Changes(noted=noted, returned=(Returned("acme", "ended", limits),)))
    with redis_server.client() as client:
        left_ms = {key.decode().split(":")[-2]: client.pttl(key) for key in client.keys("*expiring*:acme")}
    assert left_ms.keys() == {"quota", "claims", "ended"}
    assert 0 < left_ms["ended"] <= 30_000
    assert min(left_ms.values()) > 0
    await store.close()


async def test_clusters_on_one_server_do_not_meet(redis_server: RedisServer) -> None:
    config = config_of(redis_server)
    one, other = RedisStore(config, "one"), RedisStore(config, "other")
    await one.exchange("a", Changes(reserved={"w1": Reserved(100, 1)}))
    assert (await other.exchange("b", Changes())).reserved == {}
    await one.close()
    await other.close()
