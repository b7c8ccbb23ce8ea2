"""The store in Redis or Valkey, for several routers. The only module that imports redis.

Every call has a deadline and none is repeated here; whatever goes wrong leaves as `StoreUnavailable`. Times and expiry
are the server's. All keys of a cluster share a hash tag, so they live in one slot.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cluster import redis_scripts as scripts
from cluster.config_store import StoreConfig
from cluster.errors import StoreUnavailable
from cluster.memory_store import total
from cluster.quota import Claim, Denied, Granted, Limits, Verdict
from cluster.store import PINS_AT_ONCE, Changes, DrainMark, Pin, Reserved, Shared

_CONNECTIONS = 32
_IDS_AT_ONCE = 1_000  # arguments of one script; Lua copies them all
_Load: TypeAlias = dict[str, tuple[int, int]]
_encode = msgspec.msgpack.Encoder().encode
_decode_load = msgspec.msgpack.Decoder(_Load).decode
_encode_mark = msgspec.json.Encoder().encode
_decode_mark = msgspec.json.Decoder(DrainMark).decode


class RedisStore:
    """`cluster`: clusters of different names share a server without meeting. `password`: None for none."""

    def __init__(self, config: StoreConfig, cluster: str, password: str | None = None) -> None:
        self._config = config
        self._prefix = f"{{baton:{cluster}}}:v1:"
        pool = BlockingConnectionPool.from_url(
            config.url,
            password=password,
            protocol=2,
            max_connections=_CONNECTIONS,
            timeout=config.deadline_s,
            socket_timeout=None,  # ours is `_deadline`; the client's own way, `wait_for`, can lose a cancellation
            socket_connect_timeout=config.deadline_s,
            retry=Retry(NoBackoff(), 0),
            client_name="baton-router",
        )
        self._redis = Redis.from_pool(pool)
        self._claim = self._redis.register_script(scripts.CLAIM)

    def __repr__(self) -> str:
        return f"<RedisStore {self._config.url} {self._prefix}>"

    async def exchange(self, router_id: str, changes: Changes) -> Shared:
        async with self._deadline(), self._redis.pipeline(transaction=False) as pipe:
            self._heartbeat(pipe, router_id, changes)
            self._put_marks(pipe, changes.marks)
            pipe.hgetall(self._key("drain"))
            pipe.xrange(self._key("pins"), min=f"({changes.cursor or '0-0'}", max="+", count=PINS_AT_ONCE)
            self._put_claims(pipe, changes)
            self._put_pins(pipe, changes.pins)
            self._put_records(pipe, changes)
            answers = await pipe.execute()
            marks, pins = answers[1 + len(changes.marks) : 3 + len(changes.marks)]
            return self._shared(router_id, changes, answers[0], marks, pins)

    async def claim(self, claim: Claim) -> Verdict:
        arguments: list[str | float] = [*self._limits(claim.limits), claim.claim_id, claim.tokens]
        async with self._deadline():
            limit, wait_s = await self._claim(keys=self._quota_keys(claim.tenant), args=arguments)
        return Granted() if limit == b"granted" else Denied(limit.decode(), float(wait_s))

    async def mark(self, mark: DrainMark) -> None:
        async with self._deadline():
            await self._redis.hset(self._key("drain"), mark.worker_id, _encode_mark(mark))

    async def unmark(self, worker_id: str) -> None:
        async with self._deadline():
            await self._redis.hdel(self._key("drain"), worker_id)

    async def recall(self, request_id: str) -> bytes | None:
        async with self._deadline():
            found: bytes | None = await self._redis.eval(scripts.RECALL, 2, *self._journal_keys(), request_id)
        return found

    async def leave(self, router_id: str) -> None:
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(self._key("routers"), router_id)
            pipe.hdel(self._key("load"), router_id)
            await pipe.execute()

    async def close(self) -> None:
        await self._redis.aclose()

    # What an exchange says

    def _heartbeat(self, pipe: Pipeline, router_id: str, changes: Changes) -> None:
        keys = [self._key(name) for name in ("routers", "load", "born")]
        load: _Load = {name: (share.tokens, share.sequences) for name, share in changes.reserved.items()}
        pipe.eval(scripts.HEARTBEAT, len(keys), *keys, router_id, self._lease_ms, _encode(load), uuid.uuid4().hex)

    def _put_marks(self, pipe: Pipeline, marks: Iterable[DrainMark]) -> None:
        for mark in marks:
            pipe.hsetnx(self._key("drain"), mark.worker_id, _encode_mark(mark))

    def _put_claims(self, pipe: Pipeline, changes: Changes) -> None:
        for tenant, claim_ids in changes.renewed.items():
            for part in _parts(claim_ids):
                pipe.eval(scripts.RENEW, 1, self._key(f"claims:{tenant}"), self._lease_ms, *part)
        noted: dict[tuple[str, Limits], list[str | float]] = defaultdict(list)
        for claim in changes.noted:
            noted[claim.tenant, claim.limits] += [claim.claim_id, claim.tokens]
        self._eval_quota(pipe, scripts.NOTE, noted)
        returned: dict[tuple[str, Limits], list[str | float]] = defaultdict(list)
        for end in changes.returned:
            returned[end.tenant, end.limits] += [end.claim_id, end.unused_requests, end.unused_tokens]
        self._eval_quota(pipe, scripts.GIVE_BACK, returned)

    def _eval_quota(
        self, pipe: Pipeline, script: str, by_tenant: Mapping[tuple[str, Limits], list[str | float]]
    ) -> None:
        for (tenant, limits), arguments in by_tenant.items():
            keys = self._quota_keys(tenant)
            pipe.eval(script, len(keys), *keys, *self._limits(limits), *arguments)

    def _put_pins(self, pipe: Pipeline, pins: Iterable[Pin]) -> None:
        pairs = [text for pin in pins for text in (pin.session_id, pin.worker_id)]
        if pairs:
            keep_ms = int(self._config.pin_s * 1000)
            pipe.eval(scripts.PIN, 1, self._key("pins"), keep_ms, self._config.max_pins, *pairs)

    def _put_records(self, pipe: Pipeline, changes: Changes) -> None:
        pairs = [part for record in changes.records for part in (record.request_id, record.body)]
        if pairs:
            pipe.eval(scripts.JOURNAL, 2, *self._journal_keys(), self._config.journal_records, *pairs)

    # What it hears

    def _shared(self, router_id: str, changes: Changes, beat: Any, marks: Any, entries: Any) -> Shared:
        now_ms, incarnation, flat = beat
        loads = dict(zip(flat[::2], flat[1::2], strict=True))
        others = [_decode_load(load) for name, load in loads.items() if name.decode() != router_id]
        shares = [{name: Reserved(*share) for name, share in load.items()} for load in others]
        pins = tuple(
            Pin(fields[b"s"].decode(), fields[b"w"].decode(), max(0, now_ms - int(number.split(b"-")[0])) / 1000)
            for number, fields in entries
        )
        return Shared(
            reserved=total(shares),
            pins=pins,
            cursor=entries[-1][0].decode() if entries else changes.cursor,
            marks={name.decode(): _decode_mark(body) for name, body in marks.items()},
            routers=len(loads),
            incarnation=incarnation.decode(),
        )

    # Keys and time

    @property
    def _lease_ms(self) -> int:
        return int(self._config.lease_s * 1000)

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _quota_keys(self, tenant: str) -> list[str]:
        return [self._key(f"{kind}:{tenant}") for kind in ("quota", "claims", "ended")]

    def _journal_keys(self) -> list[str]:
        return [self._key("journal"), self._key("journal:index")]

    def _limits(self, limits: Limits) -> list[float]:
        return [
            limits.requests_per_s, limits.request_depth, limits.tokens_per_s, limits.token_depth, limits.concurrent,
            self._lease_ms,
        ]  # fmt: skip

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Redis's own errors end here."""
        try:
            async with asyncio.timeout(self._config.deadline_s):
                yield
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._config.url}: no answer in {self._config.deadline_s:g} s") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"{self._config.url}: {error}") from error
        except msgspec.DecodeError as error:
            raise StoreUnavailable(f"{self._config.url}: a router wrote what this one cannot read: {error}") from error


def _parts(claim_ids: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return (claim_ids[at : at + _IDS_AT_ONCE] for at in range(0, len(claim_ids), _IDS_AT_ONCE))
