"""Quotas in one place, at exact times; the same in all stores is shown in `test_store.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config_admission import TenantConfig
from cluster.quota import Claim, Denied, Granted, Limits, QuotaTable, Returned, limits_of

RATE = Limits(requests_per_s=2.0, request_depth=4, tokens_per_s=100.0, token_depth=500, concurrent=0)


def claim(claim_id: str, tokens: int = 0, limits: Limits = RATE) -> Claim:
    return Claim("t", claim_id, tokens, limits)


def test_limits_come_from_the_configuration() -> None:
    assert not limits_of(TenantConfig())
    assert limits_of(TenantConfig(requests_per_s=0.05, tokens_per_s=100.0, burst_s=5.0, max_concurrent=7)) == Limits(
        0.05, 1.0, 100.0, 500.0, 7
    )


def test_a_burst_is_granted_and_then_the_rate() -> None:
    table = QuotaTable(lease_s=5.0)
    granted = [table.claim(claim(str(n)), 0.0) == Granted() for n in range(6)]
    assert granted == [True, True, True, True, False, False]
    assert table.claim(claim("a"), 0.0) == Denied("requests", 0.5)
    denied = table.claim(claim("a"), 0.49)
    assert isinstance(denied, Denied)
    assert denied.limit == "requests"
    assert denied.retry_after_s == pytest.approx(0.01)
    assert table.claim(claim("a"), 0.5) == Granted()


def test_a_request_larger_than_the_burst_passes_when_the_bucket_is_full_and_is_paid_off() -> None:
    table = QuotaTable(lease_s=5.0)
    assert table.claim(claim("huge", 2_000), 0.0) == Granted()
    denied = table.claim(claim("small", 1), 0.0)
    assert isinstance(denied, Denied)
    assert denied.limit == "tokens"
    assert denied.retry_after_s == pytest.approx(15.01)
    assert table.claim(claim("small", 1), 15.02) == Granted()


def test_each_router_alone_enforces_an_equal_part() -> None:
    assert Limits(3.0, 30.0, 90.0, 900.0, 4).part(3) == Limits(1.0, 10.0, 30.0, 300.0, 2)
    assert Limits(concurrent=1).part(5).concurrent == 1
    assert Limits(concurrent=0).part(5).concurrent == 0


def test_a_tenant_is_forgotten_when_it_holds_nothing_and_owes_nothing() -> None:
    table = QuotaTable(lease_s=1_000.0)
    table.claim(claim("1"), 0.0)
    table.forget_idle(500.0)
    assert table.known == {"t"}
    table.give_back(Returned("t", "1", RATE), 500.0)
    table.forget_idle(500.0)
    assert table.known == set()


def test_a_debt_is_remembered_until_it_is_paid_however_long_that_takes() -> None:
    table = QuotaTable(lease_s=5.0)
    table.claim(claim("huge", 1_000_000), 0.0)
    table.give_back(Returned("t", "huge", RATE), 1.0)
    table.forget_idle(9_994.0)
    denied = table.claim(claim("small", 1), 9_994.0)
    assert isinstance(denied, Denied)
    assert denied.limit == "tokens"
    table.forget_idle(9_999.9)
    assert table.known == {"t"}
    table.forget_idle(10_000.0)
    assert table.known == set()


def test_that_a_claim_has_ended_is_known_for_as_long_as_was_asked_for_and_no_longer() -> None:
    table = QuotaTable(lease_s=5.0, ended_s=5.0)
    for n in range(100):
        table.note(claim(str(n)), 0.0)
        table.give_back(Returned("t", str(n), RATE, unused_requests=1), 0.0)
        table.note(claim(str(n)), 4.9)
    assert table.held("t") == 0
    table.forget_idle(4.9)
    assert table.known == {"t"}
    table.forget_idle(5.0)
    assert table.known == set()


def test_a_claim_whose_router_died_does_not_keep_its_tenant_for_ever() -> None:
    table = QuotaTable(lease_s=5.0)
    table.claim(claim("1"), 0.0)
    table.forget_idle(100.0)
    assert table.known == set()


@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 400), st.booleans()), max_size=60),
    st.integers(1, 5),
)
def test_no_more_is_ever_granted_than_burst_and_rate_allow(
    steps: list[tuple[float, int, bool]], concurrent: int
) -> None:
    limits = Limits(2.0, 4, 100.0, 500, concurrent)
    table, now, granted, tokens = QuotaTable(lease_s=1e9), 0.0, 0, 0
    live: list[str] = []
    for n, (wait, wanted, ends) in enumerate(steps):
        now += wait
        if ends and live:
            table.give_back(Returned("t", live.pop(0), limits), now)
        if table.claim(claim(str(n), wanted, limits), now) == Granted():
            granted, tokens = granted + 1, tokens + wanted
            live.append(str(n))
        assert table.held("t") == len(live) <= concurrent
        assert granted <= 4 + 2.0 * now + 1e-6
        assert tokens <= 500 + 100.0 * now + 400
