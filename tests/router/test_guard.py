"""Who may use what: every kind of access against every kind of key."""

from __future__ import annotations

import pytest

from cluster.cache_salt import CacheSalts
from cluster.config_admission import AdmissionConfig
from cluster.config_security import NO_TENANT
from cluster.errors import BatonError, Forbidden, InvalidRequest, Unauthenticated
from cluster.key_ring import KeyRing
from router.guard import Access, Guard
from tests.keys import Made, made

USER, OTHER = made(tenant="acme"), made(tenant="other")
VIEW, OPERATE = made(role="view"), made(role="operate")
RING = KeyRing(key.entry for key in (USER, OTHER, VIEW, OPERATE))
SALTS = CacheSalts(b"the secret of this cluster")
GUARD = Guard(lambda: RING, SALTS)
UNGUARDED = Guard(None, SALTS)

ALLOWED: dict[Access | None, set[Made | None]] = {
    Access.OPEN: {None, USER, VIEW, OPERATE},
    Access.ANY: {USER, VIEW, OPERATE},
    Access.USER: {USER},
    Access.VIEW: {VIEW, OPERATE},
    Access.OPERATE: {OPERATE},
    None: set(),
}


def headers(key: Made | None, **more: str) -> list[tuple[str, str]]:
    shown = [] if key is None else [("Authorization", key.bearer)]
    return [*shown, *((name.replace("_", "-"), value) for name, value in more.items())]


@pytest.mark.parametrize("access", [*Access, None])
@pytest.mark.parametrize("key", [None, USER, VIEW, OPERATE], ids=["none", "user", "view", "operate"])
def test_access_is_given_to_whom_it_is_declared_for(access: Access | None, key: Made | None) -> None:
    if key in ALLOWED[access]:
        GUARD.check(access, headers(key))
        return
    with pytest.raises(Unauthenticated if key is None else Forbidden):
        GUARD.check(access, headers(key))


@pytest.mark.parametrize("access", [*Access, None])
def test_without_keys_nobody_is_asked(access: Access | None) -> None:
    assert UNGUARDED.check(access, headers(made(tenant="whoever"))) is None
    assert not UNGUARDED.asks


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([("authorization", made(tenant="acme").bearer)], Unauthenticated),
        ([("authorization", USER.key)], Unauthenticated),
        ([("authorization", f"Basic {USER.key}")], Unauthenticated),
        ([("authorization", "Bearer")], Unauthenticated),
        ([("authorization", "")], Unauthenticated),
        ([("authorization", f"Bearer {USER.entry.sha256}")], Unauthenticated),
        ([("authorization", USER.bearer)] * 2, InvalidRequest),
        ([("authorization", USER.bearer), ("x-api-key", USER.key)], InvalidRequest),
        ([("authorization-bin", USER.bearer)], Unauthenticated),
    ],
)
def test_what_is_not_one_known_key_gives_nothing(given: list[tuple[str, str]], error: type[BatonError]) -> None:
    with pytest.raises(error) as caught:
        GUARD.caller(given)
    assert USER.key.split("_")[2] not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        [(b"Authorization", USER.bearer.encode())],
        [("authorization", f"bearer  {USER.key} ")],
        [("X-Api-Key", USER.key)],
    ],
)
def test_a_key_is_taken_as_clients_send_it(given: list[tuple[str | bytes, str | bytes]]) -> None:
    assert GUARD.caller(given).tenant == "acme"


def test_the_tenant_is_the_keys_whatever_headers_say() -> None:
    caller = GUARD.caller(headers(USER, x_tenant_id="acme", x_priority_class="batch"))
    assert (caller.tenant, caller.priority) == ("acme", "batch")
    with pytest.raises(Forbidden, match=r"x-tenant-id says other; key .* is of tenant acme"):
        GUARD.caller(headers(USER, x_tenant_id="other"))


def test_an_operator_is_no_user() -> None:
    with pytest.raises(Forbidden, match=r"this takes a user's key; key .* is an operator's with the role operate"):
        GUARD.caller(headers(OPERATE))


def test_without_keys_callers_are_who_they_say_they_are() -> None:
    assert UNGUARDED.caller(headers(None, x_tenant_id="acme")).tenant == "acme"
    assert UNGUARDED.caller([]).tenant == NO_TENANT


def test_each_tenant_has_a_salt_of_its_own_and_nobody_in_particular_none() -> None:
    acme, other = GUARD.caller(headers(USER)), GUARD.caller(headers(OTHER))
    assert len({acme.salted(""), other.salted(""), acme.salted("mine"), other.salted("mine"), ""}) == 5
    assert acme.salted("") == UNGUARDED.caller(headers(None, x_tenant_id="acme")).salted("")
    assert UNGUARDED.caller([]).salted("") == ""


def test_tenants_of_one_group_share_and_others_do_not() -> None:
    tenants = {"acme": {"prefix_group": "friends"}, "other": {"prefix_group": "friends"}}
    guard = Guard(None, SALTS, AdmissionConfig.model_validate({"tenants": tenants}))
    salts = [guard.named(name, "").salted("") for name in ("acme", "other", "friends")]
    assert salts[0] == salts[1] != salts[2]
