"""An owner's side of vLLM's NixlConnector: turns what the connector gives into tickets, tickets into what it takes,
and counts what can be seen from outside.

The connector answers no questions: counts come from its own counters, which leave the engine with its steps, and from
where the engine says that each prompt came from. What a writer's readers took out of it, it does not tell.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.engine import EngineLoad, EngineRequest, Leg, PromptOrigin, TransferCount
from cluster.errors import LeaseLost, TicketRefused
from cluster.kv_link import KvStats
from kv_transfer.stock_settings import SideChannel
from kv_transfer.stock_ticket import StockTicket, check_reader, open_stock, seal_stock
from kv_transfer.ticket import prompt_digest

logger = logging.getLogger(__name__)

_LANDED = ("nixl", "landed")
_USABLE_SHARE = 0.75
"""Of a lease, for the ticket to find its reader; the rest is for the reader to reach the writer, which renews it."""

_ASK_FOR_BLOCKS: Mapping[str, object] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@dataclass(frozen=True, slots=True)
class StockIdentity:
    """One engine start. `lease_s`: how long its blocks wait for a reader, seconds. `fingerprint`: of its packing."""

    worker_id: str
    epoch: int
    block_size: int
    lease_s: float
    secret: bytes
    fingerprint: bytes


class StockLink:
    """Implements `cluster.kv_link.KvLink` and `ConnectorDialect`. `now`: monotonic seconds; `wall`: seconds since the
    Unix epoch."""

    def __init__(
        self,
        identity: StockIdentity,
        channel: SideChannel,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._channel = channel
        self._now = now
        self._wall = wall
        self._offered = self._expired = self._recomputed = 0
        self._waiting: deque[float] = deque()  # when the blocks of each ticket are given away at the latest
        self._pulling: set[str] = set()
        self._pulls: Counter[tuple[str, str]] = Counter()  # by transport and outcome
        self._blocks = self._bytes = 0

    # The line to the connector

    async def address(self) -> str:
        return ""  # readers find the side channel in the ticket

    async def fingerprint(self) -> bytes:
        return self._identity.fingerprint

    async def stats(self) -> KvStats:
        self._forget_expired()
        leases = len(self._waiting)
        return KvStats(
            leases=leases,
            leases_offered=self._offered,
            leases_released=max(0, self._offered - self._expired - leases),
            leases_expired=self._expired,
            recomputed_requests=self._recomputed,
            transfers=self._transfers(),
        )

    async def release(self, lease_id: str) -> None:
        """Only a reader, or time, can end the wait of this connector's blocks; their tickets have no lease id."""

    async def close(self) -> None:
        self._channel.close()

    # The connector's dialect

    def ask(self, request: EngineRequest) -> Mapping[str, object] | None:
        match request.leg:
            case Leg.PREFILL:
                return _ASK_FOR_BLOCKS
            case Leg.DECODE:
                return self._opened(request)
        return None

    def ticket(self, request: EngineRequest, answer: Mapping[str, object]) -> bytes:
        blocks = answer.get("remote_block_ids")
        if not (answer.get("do_remote_prefill") and isinstance(blocks, Sequence) and any(blocks)):
            return b""
        identity = self._identity
        self._offered += 1
        self._waiting.append(self._now() + identity.lease_s)
        made = StockTicket(
            attempt_id=request.attempt_id,
            worker_id=identity.worker_id,
            epoch=identity.epoch,
            num_tokens=len(request.prompt_token_ids),
            prompt_digest=prompt_digest(request.prompt_token_ids),
            fingerprint=identity.fingerprint,
            expires_unix_ms=int((self._wall() + identity.lease_s * _USABLE_SHARE) * 1000),
            params=answer,
        )
        return seal_stock(made, identity.secret)

    def began(self, request: EngineRequest, origin: PromptOrigin) -> None:
        # The one token of a prompt of one is pulled and computed again all the same; the engine says neither.
        if request.attempt_id not in self._pulling or origin.prompt_tokens == 1:
            return
        if origin.pulled_tokens:
            block_size = self._identity.block_size
            last = -(-(origin.cached_tokens + origin.pulled_tokens) // block_size)
            self._blocks += last - origin.cached_tokens // block_size
            self._pulls[_LANDED] += 1
            return
        self._recomputed += 1
        self._pulls["nixl", "failed"] += 1

    def ended(self, attempt_id: str) -> None:
        self._pulling.discard(attempt_id)

    def stepped(self, load: EngineLoad, counters: Mapping[str, Sequence[float]]) -> None:
        if load == EngineLoad():
            self._waiting.clear()  # every block is free: all readers are done
        self._expired += len(counters.get("num_kv_expired_reqs", ()))
        self._bytes += int(sum(counters.get("bytes_transferred", ())))
        if late := len(counters.get("num_notifications_after_expiry", ())):
            logger.error(
                "%d readers were done only after their blocks had been given away, and may have used other requests' "
                "KV: raise kv_transfer.lease_s above %g",
                late,
                self._identity.lease_s,
            )

    def _opened(self, request: EngineRequest) -> Mapping[str, object] | None:
        identity = self._identity
        try:
            ticket = open_stock(request.ticket, identity.secret)
            check_reader(ticket, request.prompt_token_ids, identity.fingerprint, int(self._wall() * 1000))
        except (TicketRefused, LeaseLost) as error:
            self._recomputed += 1
            self._pulls["none", "stale" if isinstance(error, LeaseLost) else "refused"] += 1
            logger.warning("attempt %s computes its prompt: %s", request.attempt_id, error)
            return None
        self._pulling.add(request.attempt_id)
        return ticket.params

    def _transfers(self) -> tuple[TransferCount, ...]:
        """Bytes are the connector's own count, also of the one token that is pulled in vain."""
        landed = TransferCount(*_LANDED, self._pulls[_LANDED], self._blocks, self._bytes)
        others = [TransferCount(*key, count, 0, 0) for key, count in sorted(self._pulls.items()) if key != _LANDED]
        return (*([landed] if landed.bytes or landed.count else []), *others)

    def _forget_expired(self) -> None:
        while self._waiting and self._waiting[0] <= self._now():
            self._waiting.popleft()
