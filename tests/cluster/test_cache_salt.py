"""Cache salts: equal where prefixes may be shared, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.cache_salt import CacheSalts, mixed

SALTS = CacheSalts(b"the secret of this cluster")
NAMES = st.text(min_size=1, max_size=12)


def test_every_router_makes_the_same_salt_and_another_cluster_another() -> None:
    assert SALTS.of_tenant("acme") == CacheSalts(b"the secret of this cluster").of_tenant("acme")
    assert SALTS.of_tenant("acme") != CacheSalts(b"the secret of that cluster").of_tenant("acme")


def test_a_tenant_cannot_name_itself_into_a_group() -> None:
    assert SALTS.of_tenant("shared") != SALTS.of_group("shared")


@given(NAMES, NAMES, st.text(max_size=8), st.text(max_size=8))
def test_tenants_never_meet_whatever_their_clients_ask_for(one: str, other: str, asked: str, wished: str) -> None:
    alike = mixed(SALTS.of_tenant(one), asked) == mixed(SALTS.of_tenant(other), wished)
    assert alike == ((one, asked) == (other, wished))


@given(NAMES)
def test_asking_for_anothers_salt_does_not_give_it(tenant: str) -> None:
    theirs = SALTS.of_tenant(tenant)
    assert mixed("", theirs) != theirs
    assert mixed(SALTS.of_tenant(f"{tenant} too"), theirs) != theirs


def test_nobody_in_particular_who_asks_for_nothing_has_none() -> None:
    assert mixed("", "") == ""


@given(st.text(st.characters(codec=None), min_size=1) | st.just("\ud800"))
def test_a_salt_is_one_that_the_engine_takes(wished: str) -> None:
    salt = mixed(SALTS.of_tenant("acme"), wished)
    assert salt.isalnum()
    assert len(salt) <= 128
