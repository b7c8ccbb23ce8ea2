"""Who may use what: from the credentials of a request or call to its caller, or to a refusal; decided here alone.

Pure but for `keys`, which gives the keys of now. Edges ask it before anything else, and declare here what each of their
routes and methods takes: one that is not declared is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from cluster.cache_salt import CacheSalts
from cluster.config_admission import AdmissionConfig
from cluster.config_security import NO_TENANT, KeyEntry
from cluster.errors import Forbidden, InvalidRequest, Unauthenticated
from cluster.key_ring import KeyRing
from router.caller import TENANT_HEADER, Caller, caller_of, text_of

Headers = Iterable[tuple[str | bytes, str | bytes]]

_SCHEME = "bearer"
_KEY_HEADERS = ("authorization", "x-api-key")
_HOW = "send `Authorization: Bearer KEY`"


class Access(Enum):
    """What a route or method takes."""

    OPEN = "no key"
    ANY = "any key"
    USER = "a user's key"
    VIEW = "an operator's key with the role view or operate"
    OPERATE = "an operator's key with the role operate"


HTTP_ACCESS: Mapping[str, Access] = {"/health": Access.OPEN, "/metrics": Access.VIEW}
"""By path; every other path, whether it exists or not, takes a user's key."""

GRPC_ACCESS: Mapping[str, Access] = {
    "/baton.v1.Inference/Generate": Access.USER,
    "/baton.v1.Inference/ListModels": Access.USER,
    "/baton.v1.Admin/Status": Access.VIEW,
    "/baton.v1.Admin/Explain": Access.VIEW,
    "/baton.v1.Admin/Trace": Access.VIEW,
    "/baton.v1.Admin/ListRequests": Access.VIEW,
    "/baton.v1.Admin/ListLeases": Access.VIEW,
    "/baton.v1.Admin/ListEvents": Access.VIEW,
    "/baton.v1.Admin/Cache": Access.VIEW,
    "/baton.v1.Admin/ShowConfig": Access.VIEW,
    "/baton.v1.Admin/FlushCache": Access.OPERATE,
    "/baton.v1.Admin/Drain": Access.OPERATE,
    "/baton.v1.Admin/Scale": Access.OPERATE,
    "/baton.v1.Admin/Autoscale": Access.VIEW,
    "/baton.v1.Admin/PauseAutoscale": Access.OPERATE,
    "/grpc.health.v1.Health/Check": Access.OPEN,
    "/grpc.health.v1.Health/List": Access.OPEN,
    "/grpc.health.v1.Health/Watch": Access.OPEN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Access.ANY,
}
"""Every method that the router serves."""


class Guard:
    """`keys` None: nobody is asked for a key, and callers are who they say they are."""

    def __init__(
        self,
        keys: Callable[[], KeyRing] | None = None,
        salts: CacheSalts | None = None,
        tenants: AdmissionConfig | None = None,
    ) -> None:
        self._keys = keys
        self._salts = salts
        self._tenants = tenants or AdmissionConfig()

    @property
    def asks(self) -> bool:
        """Whether anyone is asked for a key."""
        return self._keys is not None

    def check(self, access: Access | None, headers: Headers) -> KeyEntry | None:
        """Whose key this is, where one is asked for. `access` None: of something that is not declared.

        Raises `Unauthenticated`, `Forbidden`, `InvalidRequest`.
        """
        if self._keys is None or access is Access.OPEN:
            return None
        entry = self._keys().find(_given_key(headers))
        if entry is None:
            raise Unauthenticated(f"the key is not known here, or no longer: {_HOW}")
        if access is None or not _allows(entry, access):
            needed = "nobody may use this" if access is None else f"this takes {access.value}"
            raise Forbidden(f"{needed}; key {entry.id} is {_holder(entry)}")
        return entry

    def caller(self, headers: Headers) -> Caller:
        """Of a request that a user's key allows. Raises what `check` raises."""
        given = list(headers)
        entry = self.check(Access.USER, given)
        said = caller_of(given)
        if entry is None:
            return self.named(said.tenant, said.priority)
        if entry.tenant is None or said.tenant not in (NO_TENANT, entry.tenant):
            raise Forbidden(f"{TENANT_HEADER} says {said.tenant}; key {entry.id} is {_holder(entry)}")
        return self.named(entry.tenant, said.priority)

    def named(self, tenant: str, priority: str) -> Caller:
        """Somebody of that tenant, who shares cached prefixes as the tenant does."""
        return Caller(tenant, priority, cache_salt=self._salt(tenant))

    def _salt(self, tenant: str) -> str:
        if self._salts is None:
            return ""
        group = self._tenants.tenant(tenant).prefix_group
        if group is not None:
            return self._salts.of_group(group)
        return "" if tenant == NO_TENANT else self._salts.of_tenant(tenant)


def _given_key(headers: Headers) -> str:
    """Raises `Unauthenticated`: no key. `InvalidRequest`: more than one."""
    given = [(text_of(name).lower(), text_of(value).strip()) for name, value in headers if _may_hold_key(name)]
    if not given:
        raise Unauthenticated(f"a key is needed here: {_HOW}")
    if len(given) > 1:
        raise InvalidRequest(f"more than one key is given: {_HOW}, once")
    name, value = given[0]
    if name != "authorization":
        return value
    scheme, _, key = value.partition(" ")
    if scheme.lower() != _SCHEME:
        raise Unauthenticated(f"authorization: not a scheme that is known here: {_HOW}")
    return key.strip()


def _may_hold_key(name: str | bytes) -> bool:
    return text_of(name).lower() in _KEY_HEADERS


def _allows(entry: KeyEntry, access: Access) -> bool:
    match access:
        case Access.OPEN | Access.ANY:
            return True
        case Access.USER:
            return entry.tenant is not None
        case Access.VIEW:
            return entry.role is not None
        case Access.OPERATE:
            return entry.role == "operate"


def _holder(entry: KeyEntry) -> str:
    return f"an operator's with the role {entry.role}" if entry.tenant is None else f"of tenant {entry.tenant}"
