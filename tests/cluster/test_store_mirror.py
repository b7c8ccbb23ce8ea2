"""The mirror of the shared state: never waits for look-ups, goes on alone, and sets things right on return."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from cluster.config_store import StoreConfig
from cluster.errors import StoreUnavailable
from cluster.quota import Claim, Denied, Granted, Limits, Returned
from cluster.store import NOTHING, DrainMark, Reserved
from cluster.store_mirror import StoreMirror
from tests.cluster.mirror_world import CONFIG, World

TWO = Limits(concurrent=2)


@pytest.fixture
def world() -> World:
    return World()


def claim(claim_id: str, limits: Limits = TWO) -> Claim:
    return Claim("acme", claim_id, 10, limits)


def end(claim_id: str, limits: Limits = TWO) -> Returned:
    return Returned("acme", claim_id, limits)


async def granted(mirror: StoreMirror, *claim_ids: str) -> list[bool]:
    return [isinstance(await mirror.claim(claim(claim_id)), Granted) for claim_id in claim_ids]


async def test_reservations_reach_the_other_router_with_the_next_exchange(world: World) -> None:
    world.a.reserve("w1", Reserved(100, 1))
    assert world.b.reserved_elsewhere("w1") == NOTHING
    await world.exchange()
    assert world.b.reserved_elsewhere("w1") == Reserved(100, 1)
    assert world.a.reserved_elsewhere("w1") == NOTHING
    world.a.reserve("w1", NOTHING)
    await world.exchange()
    assert world.b.reserved_elsewhere("w1") == NOTHING


async def test_pins_reach_the_other_router_and_the_newer_choice_stands(world: World) -> None:
    world.a.pin("s", "w1")
    await world.exchange()
    assert world.b.pinned("s") == "w1"
    await world.clock.advance(1.0)
    world.b.pin("s", "w2")
    assert world.b.pinned("s") == "w2"
    await world.exchange()
    assert (world.a.pinned("s"), world.b.pinned("s")) == ("w2", "w2")
    await world.clock.advance(101.0)
    assert world.a.pinned("s") is None


async def test_the_late_echo_of_an_own_pin_does_not_undo_a_newer_one(world: World) -> None:
    world.a.pin("s", "w1")
    world.link.late = asyncio.Event()
    answered = asyncio.create_task(world.a.exchange())
    await world.clock.advance(0.1)
    world.a.pin("s", "w2")
    await world.clock.advance(0.2)
    world.link.late.set()
    await answered
    assert world.a.pinned("s") == "w2"


async def test_a_pin_that_does_not_change_is_not_said_each_time(world: World) -> None:
    for _ in range(50):
        world.a.pin("s", "w1")
    batch = world.a._changes()
    assert len(batch.pins) == 1


async def test_while_the_store_is_away_the_last_state_stays_and_the_mirror_says_so(world: World) -> None:
    world.a.reserve("w1", Reserved(100, 1))
    world.a.pin("s", "w1")
    await world.a.mark(DrainMark("w9", "kernel update"))
    await world.exchange()
    world.link.cut = True
    await world.exchange()
    health = world.b.health
    assert health.degraded
    assert (health.away_since, health.reason, health.routers) == (1_000.0, "no answer in 0.25 s", 2)
    assert world.b.reserved_elsewhere("w1") == Reserved(100, 1)
    assert world.b.pinned("s") == "w1"
    assert world.b.marks == {"w9": DrainMark("w9", "kernel update")}
    await world.pass_time(6.0)
    assert world.b.reserved_elsewhere("w1") == NOTHING  # as if its owner had died: after a lease nobody knows
    assert world.b.health.away_since == 1_000.0
    world.link.cut = False
    await world.exchange()
    assert not world.b.health.degraded
    assert world.b.reserved_elsewhere("w1") == Reserved(100, 1)


async def test_an_answer_to_what_was_asked_before_the_loss_is_heard_and_ends_no_outage(world: World) -> None:
    world.b.reserve("w1", Reserved(100, 1))
    await world.b.exchange()
    world.link.late = asyncio.Event()
    asked = asyncio.create_task(world.a.exchange())
    await world.clock.advance(0.1)
    world.link.cut = True
    assert await granted(world.a, "1") == [True]
    await world.clock.advance(0.1)
    world.link.late.set()
    await asked
    assert world.a.reserved_elsewhere("w1") == Reserved(100, 1)
    assert world.a.health.away_since == 1_000.1
    world.link.cut = False
    await world.a.exchange()
    assert not world.a.health.degraded


async def test_reservations_made_during_the_outage_count_once_after_it(world: World) -> None:
    world.a.reserve("w1", Reserved(100, 1))
    await world.exchange()
    world.link.cut = True
    world.a.reserve("w1", Reserved(300, 3))
    await world.pass_time(3.0)
    world.link.cut = False
    await world.exchange(3)
    assert world.b.reserved_elsewhere("w1") == Reserved(300, 3)


async def test_alone_a_router_enforces_its_part_of_the_limit(world: World) -> None:
    await world.exchange()
    world.link.cut = True
    limits = Limits(concurrent=6)
    verdicts = [await world.a.claim(claim(str(n), limits)) for n in range(5)]
    assert verdicts == [Granted(), Granted(), Granted(), Denied("concurrency", 1.0), Denied("concurrency", 1.0)]


async def test_the_first_call_that_fails_makes_the_next_ones_not_wait(world: World) -> None:
    await world.exchange()
    world.link.cut = True
    assert await granted(world.a, "1") == [True]
    assert world.a.health.degraded
    world.link.hold = asyncio.Event()  # whoever asks the store now waits for ever
    world.link.cut = False
    async with asyncio.timeout(5):
        assert await granted(world.a, "2") == [False]  # its part of two is one


async def test_claims_of_the_outage_count_in_the_store_after_it_and_end_there(world: World) -> None:
    await world.exchange()
    world.link.cut = True
    assert await granted(world.a, "a1", "a2") == [True, False]
    assert await granted(world.b, "b1") == [True]
    world.link.cut = False
    await world.exchange()
    assert await granted(world.b, "b2") == [False]
    world.a.give_back(end("a1"))
    await world.exchange()
    assert await granted(world.b, "b2") == [True]


async def test_a_claim_that_ended_during_the_outage_is_not_held_against_the_tenant(world: World) -> None:
    await world.exchange()
    world.link.cut = True
    await granted(world.a, "a1")
    world.a.give_back(end("a1"))
    world.link.cut = False
    await world.exchange()
    assert await granted(world.b, "b1", "b2") == [True, True]


@pytest.mark.parametrize("ended", [False, True], ids=["still runs", "has ended"])
async def test_tokens_taken_during_the_outage_are_charged_after_it_once(world: World, ended: bool) -> None:
    slow = Limits(tokens_per_s=0.001, token_depth=100)
    await world.exchange()
    await world.b.claim(Claim("acme", "0", 0, slow))  # the store has heard of the tenant
    world.link.cut = True
    assert isinstance(await world.a.claim(Claim("acme", "1", 60, slow)), Granted)
    if ended:
        world.a.give_back(Returned("acme", "1", slow, unused_tokens=10))
    world.link.cut = False
    await world.pass_time(3.0)
    left = 50 if ended else 40
    assert isinstance(await world.b.claim(Claim("acme", "2", left + 1, slow)), Denied)
    assert isinstance(await world.b.claim(Claim("acme", "3", left, slow)), Granted)


async def test_claims_are_renewed_while_they_live_and_lapse_when_their_router_dies(world: World) -> None:
    assert await granted(world.a, "1", "2", "3") == [True, True, False]
    await world.pass_time(20.0)
    assert await granted(world.b, "3") == [False]
    for _ in range(6):  # only b lives on
        await world.clock.advance(1.0)
        await world.b.exchange()
    assert await granted(world.b, "3") == [True]


async def test_an_outage_longer_than_a_lease_charges_nobody_again(world: World) -> None:
    slow = Limits(tokens_per_s=0.001, token_depth=100)
    assert isinstance(await world.a.claim(Claim("acme", "1", 60, slow)), Granted)
    world.link.cut = True
    await world.pass_time(30.0)
    world.link.cut = False
    await world.pass_time(3.0)
    assert isinstance(await world.b.claim(Claim("acme", "2", 39, slow)), Granted)


async def test_a_claim_whose_asker_is_gone_is_given_back(world: World) -> None:
    world.link.hold = asyncio.Event()
    asker = asyncio.create_task(world.a.claim(claim("1")))
    await asyncio.sleep(0)
    asker.cancel()
    with suppress(asyncio.CancelledError):
        await asker
    world.link.hold = None
    await world.exchange()
    assert await granted(world.b, "2", "3") == [True, True]


async def test_a_claim_of_which_nobody_knows_whether_it_was_granted_counts_once(world: World) -> None:
    """The store took it, but its answer was lost."""
    await world.exchange()
    world.link.hold = asyncio.Event()
    asker = asyncio.create_task(world.a.claim(claim("1")))
    await asyncio.sleep(0)
    world.link.cut = True
    world.link.hold.set()
    assert await asker == Granted()
    world.link.cut, world.link.hold = False, None
    await world.exchange()
    assert await granted(world.b, "2", "3") == [True, False]


async def test_a_store_that_comes_back_empty_gets_back_what_the_routers_know(world: World) -> None:
    world.a.reserve("w1", Reserved(100, 1))
    world.a.pin("s", "w1")
    await world.a.mark(DrainMark("w9", "kernel update"))
    assert await granted(world.a, "1", "2") == [True, True]
    await world.exchange()
    world.lose_content()
    await world.exchange(3)
    newcomer = StoreMirror(world.link, "c", CONFIG, world.clock)
    await newcomer.exchange()
    assert newcomer.reserved_elsewhere("w1") == Reserved(100, 1)
    assert newcomer.pinned("s") == "w1"
    assert newcomer.marks.keys() == world.a.marks.keys() == {"w9"}


async def test_an_unmarked_worker_stays_unmarked(world: World) -> None:
    await world.a.mark(DrainMark("w9", "kernel update"))
    await world.exchange()
    await world.a.unmark("w9")
    await world.exchange()
    assert world.a.marks == world.b.marks == {}


@pytest.mark.parametrize("marked", [True, False])
async def test_a_mark_made_or_unmade_beside_an_exchange_stands_when_its_answer_comes_late(
    world: World, marked: bool
) -> None:
    """A router that lost it, for one period only, would undo the drain, and the worker would refuse it ever after."""
    mark = DrainMark("w9", "kernel update")
    if not marked:
        await world.a.mark(mark)
    world.link.late = asyncio.Event()
    exchanged = asyncio.create_task(world.a.exchange())
    await asyncio.sleep(0)
    changed = asyncio.create_task(world.a.mark(mark) if marked else world.a.unmark("w9"))
    for _ in range(10):
        await asyncio.sleep(0)
    world.link.late.set()
    await asyncio.gather(exchanged, changed)
    assert world.a.marks == ({"w9": mark} if marked else {})


async def test_what_an_exchange_puts_back_is_not_put_back_after_it_was_unmarked(world: World) -> None:
    await world.a.mark(DrainMark("w9", "kernel update"))
    await world.a.exchange()
    world.lose_content()
    await world.a.exchange()  # hears that the store is new; the next one puts back
    world.link.hold_writes = asyncio.Event()
    exchanged = asyncio.create_task(world.a.exchange())
    await asyncio.sleep(0)
    unmarked = asyncio.create_task(world.a.unmark("w9"))
    for _ in range(10):
        await asyncio.sleep(0)
    world.link.hold_writes.set()
    await asyncio.gather(exchanged, unmarked)
    await world.exchange()
    assert world.a.marks == world.b.marks == {}


async def test_a_mark_that_cannot_be_stored_is_an_error_for_the_operator(world: World) -> None:
    world.link.cut = True
    with pytest.raises(StoreUnavailable):
        await world.a.mark(DrainMark("w9", "kernel update"))
    assert world.a.marks == {}


async def test_records_wait_for_the_store_within_a_bound_that_is_counted(world: World) -> None:
    world.link.cut = True
    mirror = StoreMirror(world.link, "c", StoreConfig(max_pending=10), world.clock)
    for n in range(15):
        mirror.record(f"r{n}", b"%d" % n)
        await mirror.exchange()
    assert mirror.health.dropped == 5
    world.link.cut = False
    await mirror.exchange()
    assert await mirror.recall("r4") is None
    assert [await mirror.recall(f"r{n}") for n in range(5, 15)] == [b"%d" % n for n in range(5, 15)]


async def test_the_background_task_exchanges_once_a_period(world: World) -> None:
    task = asyncio.create_task(world.a.run())
    world.a.reserve("w1", Reserved(100, 1))
    await world.clock.advance(0.15)
    await world.b.exchange()
    assert world.b.reserved_elsewhere("w1") == Reserved(100, 1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_router_that_leaves_says_its_last_words_and_takes_its_load_with_it(world: World) -> None:
    world.a.reserve("w1", Reserved(100, 1))
    await world.exchange()
    for n in range(5_000):
        world.a.record(f"r{n}", b"last words")
    await world.a.leave()
    await world.b.exchange()
    assert world.b.reserved_elsewhere("w1") == NOTHING
    assert world.b.health.routers == 1
    assert await world.b.recall("r0") == await world.b.recall("r4999") == b"last words"


async def test_leaving_does_not_wait_for_a_store_that_is_away(world: World) -> None:
    world.link.cut = True
    world.a.record("r", b"lost")
    async with asyncio.timeout(5):
        await world.a.leave()
