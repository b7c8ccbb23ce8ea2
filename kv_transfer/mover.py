"""Pulling the blocks of a ticket into blocks of ours: connect, claim, read, complete, each within its deadline.

Runs on one event loop. Knows nothing of requests beyond their ids, nor of the engine: what a failed pull means for a
request is decided by whoever asked for it. A pull ends only when nothing can write into its target blocks any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from cluster.errors import BatonError, FingerprintMismatch, LeaseLost, TicketRefused, TransferFailed
from kv_transfer.connections import Connection, Connections
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.source_client import SourceClient
from kv_transfer.ticket import Ticket, check_blocks
from kv_transfer.transport import ReadState, Transport

_log = logging.getLogger(__name__)

# A read over shared memory moves bytes only while we poll, so we poll without pause for as long as such a read may
# take; a network card moves them by itself, so after that we pause.
_BUSY_BYTES_PER_S = 1e9
_BUSY_S = 0.002
_PAUSE_S = 0.001
_UNQUIET_S = 0.01
_RENEW_AFTER = 1 / 3  # of the time for which a claim holds


@dataclass(frozen=True, slots=True)
class PullJob:
    """`source` are blocks of the ticket's engine, `target` as many of ours, in the same order."""

    request_id: str
    ticket: Ticket
    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PullResult:
    """`outcome`: landed, or why not: failed, refused (ticket or fingerprint), stale (the lease was lost) or cancelled.
    `blocks` and `bytes` are those that landed, `bytes` of this rank only; `ahead` of these blocks came while the rest
    of their prompt was still being computed."""

    request_id: str
    transport: str
    outcome: str
    blocks: int = 0
    bytes: int = 0
    reason: str = ""
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. `connect_s` holds for connecting and for each call to a source, `read_s` for one read."""

    connect_s: float
    read_s: float


class Mover:
    """All pulls of one rank. `reader_id` names this engine start to sources; `rank` says which part of each block is
    ours."""

    def __init__(
        self, transport: Transport[Any, Any], fingerprint: Fingerprint, reader_id: str, rank: int, deadlines: Deadlines
    ) -> None:
        self._transport = transport
        self._block_bytes = transport.endpoint().layout.block_bytes
        self._rank = rank
        self._read_s = deadlines.read_s
        self._connections = Connections(transport, fingerprint, reader_id, rank, deadlines.connect_s)
        self._farewells: set[asyncio.Task[None]] = set()

    async def pull(self, job: PullJob) -> PullResult:
        """Does not raise: cancelling it ends it as `cancelled`, once its target blocks are safe."""
        try:
            size = await self._move(job)
        except (asyncio.CancelledError, BatonError) as error:
            return self._not_landed(job, *outcome_of(error))
        return PullResult(job.request_id, self._transport.name, "landed", len(job.target), size)

    def client(self, source: str) -> SourceClient:
        """For calls to a source; the caller closes it."""
        return self._connections.client(source)

    async def read(self, ticket: Ticket, source: tuple[int, ...], target: tuple[int, ...]) -> str:
        """Claims the lease and reads some of its blocks; returns the name of the transport. Does not end the lease.
        However it ends, nothing can write into `target` any more. Raises `TransferFailed`."""
        job = PullJob(ticket.attempt_id, ticket, source, target)
        async with self._connections.to(ticket) as connection:
            await self._read(connection, job)
        return self._transport.name

    async def complete(self, ticket: Ticket, blocks: int) -> int:
        """Ends the lease after all of `blocks` were read; returns their bytes. Raises `LeaseLost`: they must not be
        used."""
        size = blocks * self._block_bytes
        async with self._connections.to(ticket) as connection:
            await connection.client.complete(ticket.lease_id, ticket.epoch, self._rank, blocks, size)
        return size

    def release(self, ticket: Ticket) -> None:
        """Tells the source, in the background, that we shall not read (any more)."""
        self.leave(ticket.source, ticket.lease_id)

    def leave(self, source: str, lease_id: str) -> None:
        """As `release`, for a lease whose ticket we may not have."""
        task = asyncio.create_task(self._release(source, lease_id))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._farewells)
        await self._connections.close()

    async def _move(self, job: PullJob) -> int:
        ticket, size = job.ticket, len(job.target) * self._block_bytes
        async with self._connections.to(ticket) as source:
            await self._read(source, job)
            # Only this answer proves that the blocks were ours to read until the last byte.
            await source.client.complete(ticket.lease_id, ticket.epoch, self._rank, len(job.target), size)
        return size

    async def _read(self, source: Connection, job: PullJob) -> None:
        check_blocks(job.ticket, source.num_blocks)
        held_s = await source.client.claim(job.ticket.lease_id, job.ticket.epoch)
        read = self._transport.start(source.peer, job.source, job.target)
        try:
            await self._landed(read, source, job, held_s)
        finally:
            await self._let_go(read, job)

    async def _landed(self, read: Any, source: Connection, job: PullJob, held_s: float) -> None:
        started = claimed = time.monotonic()
        busy_until = started + _BUSY_S + len(job.target) * self._block_bytes / _BUSY_BYTES_PER_S
        try:
            async with asyncio.timeout(self._read_s):
                while (state := self._transport.poll(read)) is ReadState.MOVING:
                    now = time.monotonic()
                    if now > claimed + held_s * _RENEW_AFTER:
                        held_s = await source.client.claim(job.ticket.lease_id, job.ticket.epoch)
                        claimed = now
                    await asyncio.sleep(0 if now < busy_until else _PAUSE_S)
        except TimeoutError:
            raise TransferFailed(f"{job.ticket.source}: blocks did not arrive within {self._read_s:g} s") from None
        if state is ReadState.FAILED:
            raise TransferFailed(f"{job.ticket.source}: {self._transport.name} could not read the blocks")

    async def _let_go(self, read: Any, job: PullJob) -> None:
        # No deadline: as long as bytes may arrive, the target blocks must not become anyone else's.
        told = False
        while True:
            if self._transport.cancel(read):
                return
            if not told:
                _log.error(
                    "request %s: its read cannot be stopped yet; its blocks are kept until it is", job.request_id
                )
                told = True
            await asyncio.sleep(_UNQUIET_S)

    def _not_landed(self, job: PullJob, outcome: str, reason: str) -> PullResult:
        if outcome != "stale":
            self.release(job.ticket)
        return PullResult(job.request_id, self._transport.name, outcome, reason=reason)

    async def _release(self, source: str, lease_id: str) -> None:
        client = self._connections.client(source)
        try:
            await client.release(lease_id, self._rank)
        except TransferFailed as error:
            _log.info("lease %s ends by itself: %s", lease_id, error)
        finally:
            await client.close()


def outcome_of(error: BaseException) -> tuple[str, str]:
    """The outcome and the reason of a pull that ended with this error."""
    match error:
        case asyncio.CancelledError():
            return "cancelled", "aborted"
        case FingerprintMismatch() | TicketRefused():
            return "refused", str(error)
        case LeaseLost():
            return "stale", str(error)
        case _:
            return "failed", str(error)
