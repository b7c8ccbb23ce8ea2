"""What a tenant may take: rates with a burst, and how many requests at once. Pure; the time is an argument.

A bucket grants when it holds what is asked, or is full where more is asked than it can hold; it may go into debt. So a
request larger than the burst passes too, and the tenant waits longer for its next. `redis_scripts.py` says the same in
Lua, for several routers at once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from cluster.config_admission import TenantConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one tenant. 0: no such limit. Depths are what may be used at once, in requests and in tokens."""

    requests_per_s: float = 0.0
    request_depth: float = 0.0
    tokens_per_s: float = 0.0
    token_depth: float = 0.0
    concurrent: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests_per_s or self.tokens_per_s or self.concurrent)

    def part(self, routers: int) -> Limits:
        """What one of `routers` enforces when it cannot ask the others: an equal part, but at least one request."""
        return Limits(
            self.requests_per_s / routers,
            max(1.0, self.request_depth / routers),
            self.tokens_per_s / routers,
            max(1.0, self.token_depth / routers),
            -(-self.concurrent // routers),
        )


def limits_of(tenant: TenantConfig) -> Limits:
    requests, tokens = tenant.requests_per_s or 0.0, tenant.tokens_per_s or 0.0
    return Limits(
        requests,
        max(1.0, requests * tenant.burst_s),
        tokens,
        max(1.0, tokens * tenant.burst_s),
        tenant.max_concurrent or 0,
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A request of a tenant asks for its part. `claim_id` is used once; repeating a claim changes nothing."""

    tenant: str
    claim_id: str
    tokens: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Returned:
    """A claim has ended. What it did not use goes back to the tenant; a request that was not served does not count."""

    tenant: str
    claim_id: str
    limits: Limits
    unused_tokens: int = 0
    unused_requests: int = 0


@dataclass(frozen=True, slots=True)
class Granted:
    """To be returned, once."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Over the tenant's own limit. `limit` says which: "requests", "tokens" or "concurrency"."""

    limit: str
    retry_after_s: float


Verdict = Granted | Denied

CONCURRENCY_RETRY_S = 1.0
"""When one of the tenant's requests ends is not known; this is when to ask again."""


@dataclass(slots=True)
class _Bucket:
    """`level` as of `at`."""

    level: float
    at: float

    def refill(self, rate: float, depth: float, now: float) -> None:
        self.level = min(depth, self.level + max(0.0, now - self.at) * rate)
        self.at = now

    def full(self, rate: float, depth: float, now: float) -> bool:
        """Whether it would be, refilled; one without a rate is never emptied."""
        return not rate or self.level + (now - self.at) * rate >= depth

    def lacks_s(self, wanted: float, rate: float, depth: float) -> float:
        """Seconds until `wanted` can be taken; 0 for now."""
        return max(0.0, (min(wanted, depth) - self.level) / rate)


@dataclass(slots=True)
class _Tenant:
    """`limits`: the last that were asked with."""

    limits: Limits
    requests: _Bucket
    tokens: _Bucket
    held: dict[str, float] = field(default_factory=dict)  # claim id -> expiry
    earliest: float = float("inf")  # no claim lapses before; a lower bound, renewals do not raise it
    ended: OrderedDict[str, float] = field(default_factory=OrderedDict)  # claim id -> until when that is known

    def hold(self, claim_id: str, expiry: float) -> None:
        self.held[claim_id] = expiry
        self.earliest = min(self.earliest, expiry)

    def drop_lapsed(self, now: float) -> None:
        while self.ended and next(iter(self.ended.values())) <= now:  # the oldest comes first
            self.ended.popitem(last=False)
        if now < self.earliest:
            return
        self.held = {claim_id: expiry for claim_id, expiry in self.held.items() if expiry > now}
        self.earliest = min(self.held.values(), default=float("inf"))

    def owes_nothing(self, now: float) -> bool:
        limits = self.limits
        return self.requests.full(limits.requests_per_s, limits.request_depth, now) and self.tokens.full(
            limits.tokens_per_s, limits.token_depth, now
        )


class QuotaTable:
    """All tenants of one place. `lease_s`: a claim that is not renewed so long has ended. `ended_s`: for so long it is
    known of a claim that it was given back, for who may tell of it again."""

    def __init__(self, lease_s: float, ended_s: float = 0.0) -> None:
        self._lease_s = lease_s
        self._ended_s = ended_s
        self._tenants: dict[str, _Tenant] = {}

    def claim(self, claim: Claim, now: float) -> Verdict:
        tenant = self._refilled(claim.tenant, claim.limits, now)
        if claim.claim_id in tenant.held:
            return Granted()
        denied = _denied(tenant, claim)
        if denied is None:
            self._take(tenant, claim, now)
        return denied or Granted()

    def note(self, claim: Claim, now: float, *, charge: bool = True) -> None:
        """The claim was granted elsewhere: it counts here too, whatever the limits, unless it has ended here. Without
        `charge` it only counts as one at once, not against a rate."""
        tenant = self._refilled(claim.tenant, claim.limits, now)
        if not charge:
            tenant.hold(claim.claim_id, now + self._lease_s)
        elif claim.claim_id not in tenant.held and claim.claim_id not in tenant.ended:
            self._take(tenant, claim, now)

    def renew(self, tenant: str, claim_id: str, now: float) -> None:
        """The claim lives on, also when it had lapsed; it is not charged again."""
        if known := self._tenants.get(tenant):
            known.hold(claim_id, now + self._lease_s)

    def give_back(self, returned: Returned, now: float) -> None:
        """Ends the claim. An unknown one, or one that has lapsed, changes nothing."""
        known = self._tenants.get(returned.tenant)
        if known is None:
            return
        tenant = self._refilled(returned.tenant, returned.limits, now)
        if tenant.held.pop(returned.claim_id, None) is not None:
            if self._ended_s:
                tenant.ended[returned.claim_id] = now + self._ended_s
            limits = returned.limits
            tenant.requests.level = min(limits.request_depth, tenant.requests.level + returned.unused_requests)
            tenant.tokens.level = min(limits.token_depth, tenant.tokens.level + returned.unused_tokens)

    def forget_idle(self, now: float) -> None:
        """Drops tenants of which nothing has to be remembered: they hold nothing, no end of a claim may be told again,
        and their buckets are full."""
        for tenant in self._tenants.values():
            tenant.drop_lapsed(now)
        self._tenants = {name: t for name, t in self._tenants.items() if t.held or t.ended or not t.owes_nothing(now)}

    @property
    def known(self) -> set[str]:
        """Tenants of which something is remembered. For inspection."""
        return set(self._tenants)

    def held(self, tenant: str) -> int:
        """Claims of the tenant that had not lapsed when it was last asked about."""
        known = self._tenants.get(tenant)
        return len(known.held) if known else 0

    def _refilled(self, name: str, limits: Limits, now: float) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = _Tenant(limits, _Bucket(limits.request_depth, now), _Bucket(limits.token_depth, now))
            self._tenants[name] = tenant
        tenant.limits = limits
        tenant.requests.refill(limits.requests_per_s, limits.request_depth, now)
        tenant.tokens.refill(limits.tokens_per_s, limits.token_depth, now)
        tenant.drop_lapsed(now)
        return tenant

    def _take(self, tenant: _Tenant, claim: Claim, now: float) -> None:
        tenant.hold(claim.claim_id, now + self._lease_s)
        tenant.requests.level -= 1 if claim.limits.requests_per_s else 0
        tenant.tokens.level -= claim.tokens if claim.limits.tokens_per_s else 0


def _denied(tenant: _Tenant, claim: Claim) -> Denied | None:
    limits = claim.limits
    if limits.concurrent and len(tenant.held) >= limits.concurrent:
        return Denied("concurrency", CONCURRENCY_RETRY_S)
    waits = {"requests": 0.0, "tokens": 0.0}
    if limits.requests_per_s:
        waits["requests"] = tenant.requests.lacks_s(1, limits.requests_per_s, limits.request_depth)
    if limits.tokens_per_s:
        waits["tokens"] = tenant.tokens.lacks_s(claim.tokens, limits.tokens_per_s, limits.token_depth)
    limit = max(waits, key=lambda name: waits[name])
    return Denied(limit, waits[limit]) if waits[limit] > 0 else None
