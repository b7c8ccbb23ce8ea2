"""What every store must do, in memory or in Redis: the same tests for both."""

from __future__ import annotations

import asyncio

import pytest

from cluster.quota import Claim, Denied, Granted, Limits, Returned
from cluster.store import Changes, DrainMark, Pin, Record, Reserved, Store
from tests.cluster.conftest import OpenStore
from tests.waiting import eventually

SHORT = {"lease_s": 0.3, "period_s": 0.05}
AT_MOST_TWO = Limits(concurrent=2)


def claim(claim_id: str, limits: Limits = AT_MOST_TWO, tokens: int = 100) -> Claim:
    return Claim("acme", claim_id, tokens, limits)


async def granted(store: Store, *claims: Claim) -> list[bool]:
    return [isinstance(await store.claim(one), Granted) for one in claims]


async def test_a_router_hears_the_sum_of_what_all_others_have_reserved(open_view: OpenStore) -> None:
    store, other = open_view(), open_view()
    await store.exchange("a", Changes(reserved={"w1": Reserved(100, 1), "w2": Reserved(5, 1)}))
    await other.exchange("b", Changes(reserved={"w1": Reserved(50, 2)}))
    heard = await store.exchange("c", Changes())
    assert heard.reserved == {"w1": Reserved(150, 3), "w2": Reserved(5, 1)}
    assert heard.routers == 3
    assert (await store.exchange("a", Changes())).reserved == {"w1": Reserved(50, 2)}


async def test_what_is_said_replaces_what_was_said_before(open_view: OpenStore) -> None:
    store = open_view()
    for tokens in (100, 100, 30):
        await store.exchange("a", Changes(reserved={"w1": Reserved(tokens, 1)}))
    assert (await store.exchange("b", Changes())).reserved == {"w1": Reserved(30, 1)}


async def test_what_a_router_reserved_ends_when_it_falls_silent(open_view: OpenStore) -> None:
    store = open_view(**SHORT)
    await store.exchange("dead", Changes(reserved={"w1": Reserved(100, 1)}))
    assert (await store.exchange("b", Changes())).routers == 2

    async def forgotten() -> bool:
        heard = await store.exchange("b", Changes())
        return heard.reserved == {} and heard.routers == 1

    await eventually(forgotten)


async def test_what_a_router_reserved_ends_when_it_leaves(open_view: OpenStore) -> None:
    store = open_view()
    await store.exchange("a", Changes(reserved={"w1": Reserved(100, 1)}))
    await store.leave("a")
    assert (await store.exchange("b", Changes())).reserved == {}


async def test_all_routers_together_get_no_more_at_once_than_the_tenant_may(open_view: OpenStore) -> None:
    store, other = open_view(), open_view()
    assert await granted(store, claim("1")) == [True]
    assert await granted(other, claim("2"), claim("3")) == [True, False]
    assert await store.claim(claim("3")) == Denied("concurrency", 1.0)
    await other.exchange("b", Changes(returned=(Returned("acme", "1", AT_MOST_TWO),)))
    assert await granted(store, claim("3")) == [True]


async def test_a_thousand_claims_at_once_never_pass_the_limit(open_view: OpenStore) -> None:
    views = [open_view(), open_view()]
    limits = Limits(concurrent=37)
    verdicts = await asyncio.gather(*(views[n % 2].claim(claim(str(n), limits)) for n in range(1_000)))
    assert sum(isinstance(verdict, Granted) for verdict in verdicts) == 37


async def test_a_claim_ends_when_nobody_renews_it(open_view: OpenStore) -> None:
    store = open_view(**SHORT)
    assert await granted(store, claim("1"), claim("2"), claim("3")) == [True, True, False]

    async def one_has_lapsed() -> bool:
        await store.exchange("a", Changes(renewed={"acme": ("1",)}))
        return (await granted(store, claim("3"))) == [True]

    await eventually(one_has_lapsed)
    assert await granted(store, claim("4")) == [False]  # "1" lives, "3" is new


async def test_repeating_a_claim_takes_nothing_more(open_view: OpenStore) -> None:
    store = open_view()
    slow = Limits(requests_per_s=0.001, request_depth=2, concurrent=2)
    assert await granted(store, *[claim("same", slow)] * 5) == [True] * 5
    assert await granted(store, claim("other", slow)) == [True]


@pytest.mark.parametrize(
    ("limits", "limit", "wait_s"),
    [
        (Limits(requests_per_s=2.0, request_depth=1), "requests", 0.5),
        (Limits(tokens_per_s=1_000.0, token_depth=2_000), "tokens", 3.0),
        (Limits(100.0, 1, 1_000.0, 2_000), "tokens", 3.0),
    ],
    ids=["requests", "tokens", "the longer wait counts"],
)
async def test_a_rate_says_when_to_come_again(open_view: OpenStore, limits: Limits, limit: str, wait_s: float) -> None:
    store = open_view()
    assert await granted(store, claim("1", limits, tokens=3_000)) == [True]  # more than the bucket holds: into debt
    denied = await store.claim(claim("2", limits, tokens=5_000))
    assert isinstance(denied, Denied)
    assert denied.limit == limit
    assert denied.retry_after_s == pytest.approx(wait_s, abs=0.2)


async def test_a_bucket_fills_with_time(open_view: OpenStore) -> None:
    store = open_view()
    quick = Limits(requests_per_s=10.0, request_depth=1)
    assert await granted(store, claim("0", quick), claim("1", quick)) == [True, False]
    attempts = iter(range(2, 10_000))

    async def again() -> bool:
        return (await granted(store, claim(str(next(attempts)), quick))) == [True]

    await eventually(again)


async def test_what_was_not_used_goes_back_once(open_view: OpenStore) -> None:
    store = open_view()
    slow = Limits(tokens_per_s=0.001, token_depth=1_000)
    assert await granted(store, claim("1", slow, 900), claim("2", slow, 500)) == [True, False]
    back = Returned("acme", "1", slow, unused_tokens=600)
    await store.exchange("a", Changes(returned=(back, back)))
    await store.exchange("a", Changes(returned=(back,)))
    assert await granted(store, claim("2", slow, 701), claim("3", slow, 690)) == [False, True]


async def test_claims_granted_alone_count_once_however_often_they_are_said(open_view: OpenStore) -> None:
    store = open_view()
    slow = Limits(tokens_per_s=0.001, token_depth=1_000, concurrent=3)
    noted = (claim("1", slow, 300), claim("2", slow, 300))
    for _ in range(3):
        await store.exchange("a", Changes(noted=noted))
    assert await granted(store, claim("3", slow, 401), claim("3", slow, 399), claim("4", slow, 1)) == [
        False,
        True,
        False,
    ]


async def test_a_claim_of_an_outage_that_has_ended_is_charged_once_however_often_both_are_said(
    open_view: OpenStore,
) -> None:
    """Its answer came too late, so the router says all of it again."""
    store = open_view()
    slow = Limits(tokens_per_s=0.001, token_depth=1_000, concurrent=1)
    said = Changes(noted=(claim("1", slow, 400),), returned=(Returned("acme", "1", slow, unused_tokens=100),))
    for _ in range(3):
        await store.exchange("a", said)
    assert await granted(store, claim("2", slow, 701), claim("3", slow, 699)) == [False, True]


async def test_tenants_do_not_share_a_limit(open_view: OpenStore) -> None:
    store = open_view()
    one = Limits(concurrent=1)
    assert await granted(store, Claim("a", "1", 1, one), Claim("b", "1", 1, one), Claim("a", "2", 1, one)) == [
        True,
        True,
        False,
    ]


async def test_pins_reach_every_router_once_and_in_order(open_view: OpenStore) -> None:
    store = open_view()
    await store.exchange("a", Changes(pins=(Pin("s1", "w1"), Pin("s2", "w1"))))
    heard = await store.exchange("b", Changes())
    assert [(pin.session_id, pin.worker_id) for pin in heard.pins] == [("s1", "w1"), ("s2", "w1")]
    assert all(0 <= pin.age_s < 5 for pin in heard.pins)
    await store.exchange("a", Changes(pins=(Pin("s1", "w2"),)))
    again = await store.exchange("b", Changes(cursor=heard.cursor))
    assert [(pin.session_id, pin.worker_id) for pin in again.pins] == [("s1", "w2")]
    assert (await store.exchange("b", Changes(cursor=again.cursor))).pins == ()


async def test_pins_are_bounded_in_number(open_view: OpenStore) -> None:
    store = open_view(max_pins=10)
    await store.exchange("a", Changes(pins=tuple(Pin(f"s{n}", "w") for n in range(30))))
    heard = await store.exchange("b", Changes())
    assert [pin.session_id for pin in heard.pins] == [f"s{n}" for n in range(20, 30)]


async def test_many_pins_come_in_several_answers(open_view: OpenStore) -> None:
    store = open_view()
    for start in range(0, 7_000, 1_000):
        await store.exchange("a", Changes(pins=tuple(Pin(f"s{start + n}", "w") for n in range(1_000))))
    cursor, seen = "", []
    while pins := (heard := await store.exchange("b", Changes(cursor=cursor))).pins:
        cursor = heard.cursor
        seen += [pin.session_id for pin in pins]
    assert seen == [f"s{n}" for n in range(7_000)]


async def test_a_drain_mark_is_seen_by_all_until_it_is_taken_away(open_view: OpenStore) -> None:
    store = open_view()
    mark = DrainMark("w1", "new driver")
    await store.mark(mark)
    assert (await store.exchange("b", Changes())).marks == {"w1": mark}
    heard = await store.exchange("b", Changes(marks=(DrainMark("w1", "older"), DrainMark("w2", "put back"))))
    assert heard.marks == {"w1": mark, "w2": DrainMark("w2", "put back")}
    await store.unmark("w1")
    await store.unmark("never marked")
    assert (await store.exchange("b", Changes())).marks.keys() == {"w2"}


async def test_the_journal_keeps_the_newest_records(open_view: OpenStore) -> None:
    store = open_view(journal_records=3)
    records = tuple(Record(f"r{n}", b"\x00\xff%d" % n) for n in range(5))
    await store.exchange("a", Changes(records=records[:2]))
    await store.exchange("a", Changes(records=records[2:]))
    assert [await store.recall(f"r{n}") for n in range(5)] == [None, None, b"\x00\xff2", b"\x00\xff3", b"\x00\xff4"]


async def test_the_last_record_of_a_request_is_the_one_that_is_found(open_view: OpenStore) -> None:
    store = open_view(journal_records=3)
    await store.exchange("a", Changes(records=(Record("r", b"first"), Record("x", b"x"), Record("r", b"last"))))
    assert await store.recall("r") == b"last"
    await store.exchange("a", Changes(records=(Record("y", b"y"),)))
    assert await store.recall("r") == b"last"
    assert await store.recall("unknown") is None


async def test_the_incarnation_stays_the_same(open_view: OpenStore) -> None:
    store, other = open_view(), open_view()
    first = await store.exchange("a", Changes())
    assert (await other.exchange("b", Changes())).incarnation == first.incarnation != ""
