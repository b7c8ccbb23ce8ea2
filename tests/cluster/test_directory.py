"""The directory in a real Ray cluster: announcing, watching, and surviving the loss of its actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from cluster.clock import RealClock
from cluster.engine import Role
from cluster.errors import DeadlineExceeded
from cluster.membership import Membership, WorkerRecord, announce_until_cancelled
from tests.ray_cluster import ray_cluster

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with ray_cluster("directory-test"):
        yield


def record(worker_id: str, epoch: int = 1) -> WorkerRecord:
    return WorkerRecord(worker_id, Role.DECODE, epoch, f"{worker_id}:{epoch}")


async def shows(watch: AsyncIterator[Membership], *worker_ids: str) -> None:
    async with asyncio.timeout(30):
        async for membership in watch:
            if [r.worker_id for r in membership.workers] == list(worker_ids):
                return


def kill_directory(name: str) -> None:
    import ray

    ray.kill(ray.get_actor("directory", namespace=f"baton-{name}"))


async def test_watchers_see_workers_come_renew_leave_and_expire() -> None:
    from cluster.directory import RayDirectory

    directory, watcher = RayDirectory("one", warm_s=0.1), RayDirectory("one", warm_s=0.1)
    watch = watcher.watch()
    await shows(watch)
    await directory.announce(record("stays"), 30)
    await directory.announce(record("expires"), 1.0)
    await directory.announce(record("leaves"), 30)
    await shows(watch, "expires", "leaves", "stays")
    await directory.withdraw("leaves", 1)
    await shows(watch, "expires", "stays")
    await shows(watch, "stays")


async def test_a_lost_actor_is_made_anew_and_no_live_worker_disappears() -> None:
    from cluster.directory import RayDirectory

    directory = RayDirectory("two", warm_s=2.0)
    renewing = [
        asyncio.create_task(announce_until_cancelled(directory, record(worker_id), 1.5, RealClock()))
        for worker_id in ("a", "b")
    ]
    watch = RayDirectory("two", warm_s=2.0).watch()
    await shows(watch, "a", "b")
    seen: list[Membership] = []

    async def note() -> None:
        async for membership in watch:
            seen.append(membership)

    noting = asyncio.create_task(note())
    await asyncio.to_thread(kill_directory, "two")
    await asyncio.sleep(1.0)
    renewing[1].cancel()
    async with asyncio.timeout(30):
        while not seen:
            assert not noting.done()
            await asyncio.sleep(0.05)
    # The first change that a watcher sees is the end of the worker that really went, not the loss of the actor.
    assert [r.worker_id for r in seen[0].workers] == ["a"]
    noting.cancel()
    renewing[0].cancel()


async def test_a_directory_that_cannot_be_reached_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import directory as module

    directory = module.RayDirectory("three")

    def refuse() -> object:
        raise ValueError("no such cluster")

    monkeypatch.setattr(directory._actor, "_get_or_create", refuse)
    with pytest.raises(DeadlineExceeded, match="no such cluster"):
        await directory._actor.call("announce", record("a"), 1.0, deadline_s=0.5)
