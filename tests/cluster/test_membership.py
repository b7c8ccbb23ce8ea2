"""Membership: announcing, renewing, withdrawing, expiring and watching."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import VirtualClock
from cluster.engine import Role
from cluster.errors import DeadlineExceeded
from cluster.membership import MembershipTable, MemoryDirectory, WorkerRecord, announce_until_cancelled


def record(worker_id: str = "w", epoch: int = 1) -> WorkerRecord:
    return WorkerRecord(worker_id, Role.DECODE, epoch, f"{worker_id}:{epoch}")


def test_a_record_that_is_not_renewed_disappears_and_a_renewal_changes_nothing_else() -> None:
    table = MembershipTable()
    table.announce(record(), ttl_s=10, now=0)
    version = table.membership.version
    table.announce(record(), ttl_s=10, now=5)
    assert table.membership.version == version
    assert table.next_expiry == 15
    assert table.expire(14.9) == ()
    assert table.expire(15) == (record(),)
    assert table.membership.workers == ()
    assert table.membership.version > version


def test_an_older_epoch_neither_replaces_nor_withdraws_a_newer_one() -> None:
    table = MembershipTable()
    table.announce(record(epoch=2), 10, 0)
    table.announce(record(epoch=1), 10, 0)
    table.withdraw("w", 1)
    assert list(table.membership.workers) == [record(epoch=2)]
    table.withdraw("w", 2)
    assert list(table.membership.workers) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["announce", "withdraw", "expire"]), st.sampled_from("abc"), st.integers(1, 3)),
        max_size=30,
    )
)
def test_the_version_changes_exactly_when_the_workers_do(calls: list[tuple[str, str, int]]) -> None:
    table, now = MembershipTable(), 0.0
    for call, worker_id, number in calls:
        before = table.membership
        now += number
        match call:
            case "announce":
                table.announce(record(worker_id, number), 2.0, now)
            case "withdraw":
                table.withdraw(worker_id, number)
            case _:
                table.expire(now)
        after = table.membership
        assert (after.version > before.version) is (after.workers != before.workers)
        assert [r.worker_id for r in after.workers] == sorted(r.worker_id for r in after.workers)


async def test_a_watcher_sees_the_membership_at_once_and_then_each_change() -> None:
    clock = VirtualClock()
    directory = MemoryDirectory(clock)
    await directory.announce(record("a"), 10)
    watch = directory.watch()
    assert (await anext(watch)).workers == (record("a"),)
    later = asyncio.ensure_future(anext(watch))
    await directory.announce(record("b"), 20)
    assert (await later).workers == (record("a"), record("b"))
    await clock.advance(10)
    await directory.expire()
    assert (await anext(watch)).workers == (record("b"),)


async def test_a_worker_renews_in_time_and_survives_a_directory_that_does_not_answer() -> None:
    clock = VirtualClock()

    class Flaky(MemoryDirectory):
        calls = 0

        async def announce(self, record: WorkerRecord, ttl_s: float) -> None:
            self.calls += 1
            if self.calls == 2:
                raise DeadlineExceeded("away")
            await super().announce(record, ttl_s)

    directory = Flaky(clock)
    task = asyncio.create_task(announce_until_cancelled(directory, record(), 9.0, clock))
    for _ in range(40):
        await clock.advance(1.0)
        await directory.expire()
        assert (await anext(directory.watch())).workers == (record(),)
    task.cancel()
    assert directory.calls >= 13
