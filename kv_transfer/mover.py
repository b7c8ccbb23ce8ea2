"""Pulling the blocks of a ticket into blocks of ours: connect, claim, climb down the ladder of transports, complete.

Runs on one event loop. Knows nothing of requests beyond their ids, nor of the engine: what a failed pull means for a
request is decided by whoever asked for it. A pull ends only when nothing can write into its target blocks any more, and
the same holds for each rung of it; every wait for a peer has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.engine import TransferRung
from cluster.errors import BatonError, FingerprintMismatch, LeaseLost, Overloaded, TicketRefused, TransferFailed
from kv_transfer.climb import Climb, FallenRung, RungTime
from kv_transfer.connections import Connection, Connections, Reader
from kv_transfer.ladder import LadderRules
from kv_transfer.pauses import FIRST_S
from kv_transfer.reachability import Reachability
from kv_transfer.source_client import SourceClient
from kv_transfer.ticket import Ticket, check_blocks
from kv_transfer.transport import MOST_ANEW, BlockRead, Interrupted, Transport
from kv_transfer.turns import read_in_turn
from kv_transfer.unbroken import to_its_end

_log = logging.getLogger(__name__)

_RENEW_AFTER = 1 / 3  # of the time for which a claim holds
_RENEW_AGAIN_S = 0.2  # after a renewal that was not answered
_FAREWELLS_S = 1.0


@dataclass(frozen=True, slots=True)
class PullJob:
    """`source` are blocks of the ticket's engine, `target` as many of ours, in the same order. `sealed`: the ticket as
    its writer signed it."""

    request_id: str
    ticket: Ticket
    sealed: bytes
    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PullResult:
    """`outcome`: landed, or why not: failed (over the last transport that was tried), skipped (none was worth a try),
    refused (ticket or fingerprint), stale (the lease was lost) or cancelled. `transport` is the last one tried, "none"
    before any. `blocks` and `bytes` are those that landed, `bytes` of this rank only; `ahead` of these blocks came
    while the rest of their prompt was still being computed. `time`: of the last transport."""

    request_id: str
    transport: str
    outcome: str
    blocks: int = 0
    bytes: int = 0
    reason: str = ""
    fallen: tuple[FallenRung, ...] = ()
    ahead: int = 0
    time: RungTime = field(default=RungTime(), compare=False)

    @property
    def rungs(self) -> tuple[TransferRung, ...]:
        """Every step that was tried, in order."""
        before = (_rung(rung.time, rung.transport, "failed", reason=rung.reason) for rung in self.fallen)
        return *before, _rung(self.time, self.transport, self.outcome, self.blocks, self.bytes, self.reason)


def _rung(
    took: RungTime, transport: str, outcome: str, blocks: int = 0, size: int = 0, reason: str = ""
) -> TransferRung:
    times = took.began_unix_s, took.seconds, took.handshake_s
    return TransferRung(transport, outcome, blocks, size, reason, *times)


class Mover:
    """All pulls of one rank over the given transports, which are closed with it. `now`: monotonic seconds, for how
    long pulls take and for what is remembered of transports that failed. `draw`: that of `Pauses`."""

    def __init__(
        self,
        transports: Sequence[Transport[Any]],
        reader: Reader,
        rules: LadderRules,
        now: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._transports = transports
        self._draw = draw
        self._reader = reader
        self._rules = rules
        self._reach = Reachability(rules, now)
        self._connections = Connections(transports, reader, rules.connect_s, now)
        self._farewells: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Mover farewells={len(self._farewells)} {self._connections} {self._reach}>"

    async def pull(self, job: PullJob) -> PullResult:
        """Does not raise: cancelling it ends it as `cancelled`, once its target blocks are safe."""
        climb = Climb()
        try:
            outcome, reason = await self._move(job, climb)
        except (asyncio.CancelledError, BatonError) as error:
            outcome, reason = outcome_of(error)
        landed = outcome == "landed"
        if not landed and outcome != "stale":
            self.release(job.ticket)
        return PullResult(
            request_id=job.request_id,
            transport=climb.transport,
            outcome=outcome,
            blocks=len(job.target) if landed else 0,
            bytes=len(job.target) * self._reader.block_bytes if landed else 0,
            reason=reason,
            fallen=tuple(climb.fallen),
            time=climb.time,
        )

    def client(self, source: str) -> SourceClient:
        """For calls to a source; the caller closes it."""
        return self._connections.client(source)

    async def read(self, job: PullJob, climb: Climb) -> None:
        """Claims the lease and reads some of its blocks, but does not end it. However it ends, nothing can write into
        the target any more. Raises `TransferFailed`, `LeaseLost`, `TicketRefused`, `FingerprintMismatch`."""
        async with self._connections.to(job.ticket) as source:
            outcome, reason = await self._bring(source, job, climb)
        if outcome != "landed":
            raise TransferFailed(reason)

    async def complete(self, ticket: Ticket, blocks: int) -> int:
        """Ends the lease after all of `blocks` were read; returns their bytes. Raises `LeaseLost`: they must not be
        used."""
        async with self._connections.to(ticket) as source:
            return await self._complete(source, ticket, blocks)

    def release(self, ticket: Ticket) -> None:
        """Tells the source, in the background, that we shall not read (any more)."""
        self.leave(ticket.source, ticket.lease_id)

    def leave(self, source: str, lease_id: str) -> None:
        """As `release`, for a lease whose ticket we may not have."""
        task = asyncio.create_task(self._release(source, lease_id))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def close(self) -> None:
        """After the last pull has ended."""
        await self._reach.close()
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=_FAREWELLS_S)  # a lease that hears nothing ends by itself
        for task in self._farewells:
            task.cancel()
        await asyncio.gather(*self._farewells, return_exceptions=True)
        await self._connections.close()
        for transport in self._transports:
            transport.close()

    def check_idle(self) -> None:
        """AssertionError: something of a pull that has ended is still here."""
        assert not self._farewells, f"{len(self._farewells)} releases are under way"
        self._reach.check_idle()
        self._connections.check_idle()

    async def _move(self, job: PullJob, climb: Climb) -> tuple[str, str]:
        async with self._connections.to(job.ticket) as source:
            outcome, reason = await self._bring(source, job, climb)
            if outcome == "landed":
                await self._complete(source, job.ticket, len(job.target))
        return outcome, reason

    async def _bring(self, source: Connection, job: PullJob, climb: Climb) -> tuple[str, str]:
        """All bytes of the job, under a claim; the outcome and, unless they landed, the reason."""
        ticket = job.ticket
        check_blocks(ticket, source.endpoint.layout.num_blocks)
        rungs = self._reach.rungs(self._connections, source)
        if not rungs:
            return "skipped", f"{source}: all transports failed a moment ago, or none is offered by both ends"
        held_s = await source.client.claim(ticket.lease_id, ticket.epoch)
        await _renewed(source.client, ticket, held_s, self._climb(source, job, rungs, climb))
        return ("failed", climb.reason) if climb.reason else ("landed", "")

    async def _complete(self, source: Connection, ticket: Ticket, blocks: int) -> int:
        # Only this answer proves that the blocks were ours to read until the last byte.
        size = blocks * self._reader.block_bytes
        await source.client.complete(ticket.lease_id, ticket.epoch, self._reader.rank, blocks, size)
        return size

    async def _climb(self, source: Connection, job: PullJob, rungs: tuple[str, ...], climb: Climb) -> None:
        """Tries one rung after the other until one brings all bytes; `climb.reason` tells when none did."""
        for name in rungs:
            climb.step(name)
            try:
                await self._read(source, job, name, climb)
                return
            except (LeaseLost, TicketRefused):
                raise  # no other transport mends the ticket
            except BatonError as error:
                climb.reason = str(error)
                _log.warning("request %s: %s failed: %s", job.request_id, name, error)

    async def _read(self, source: Connection, job: PullJob, name: str, climb: Climb) -> None:
        read = BlockRead(job.sealed, job.source, job.target)
        deadline_s = self._rules.deadline_s(name, len(job.target) * self._reader.block_bytes)
        with self._reach.watched(source, name):
            await self._reach.prove(self._connections, source, name)
            with self._connections.link(source, name) as link:
                for _ in range(1 + MOST_ANEW):
                    try:
                        return await read_in_turn(link, read, deadline_s, climb.asks, self._draw)
                    except TimeoutError:
                        raise TransferFailed(f"{source}: blocks did not arrive within {deadline_s:g} s") from None
                    except Interrupted as error:
                        _log.info("request %s: %s", job.request_id, error)
                    await asyncio.sleep(FIRST_S)  # by then it is known which peer's read could not be stopped
                    if not self._reach.usable(source, name):
                        break
                raise Overloaded(f"{source}: reads of others interrupted this one, again and again")

    async def _release(self, source: str, lease_id: str) -> None:
        client = self._connections.client(source)
        try:
            await client.release(lease_id, self._reader.rank)
        except TransferFailed as error:
            _log.info("lease %s ends by itself: %s", lease_id, error)
        finally:
            await to_its_end(client.close())


async def _renewed(client: SourceClient, ticket: Ticket, held_s: float, reading: Coroutine[None, None, None]) -> None:
    """Awaits `reading` and renews the claim meanwhile. Raises `LeaseLost` once `reading` has ended."""
    try:
        async with asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(_renew(client, ticket, held_s))
            await reading
            renewing.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _renew(client: SourceClient, ticket: Ticket, held_s: float) -> None:
    """Holds the claim until it is cancelled. Raises `LeaseLost`."""
    loop = asyncio.get_running_loop()
    lost_at = loop.time() + held_s
    pause_s = held_s * _RENEW_AFTER
    while True:
        try:
            async with asyncio.timeout_at(lost_at):
                await asyncio.sleep(pause_s)
                asked_at = loop.time()
                held_s = await client.claim(ticket.lease_id, ticket.epoch)
        except TimeoutError:
            raise LeaseLost(f"lease {ticket.lease_id} could not be renewed: {client.address} is silent") from None
        except LeaseLost:
            raise
        except TransferFailed as error:
            _log.warning("lease %s is not renewed yet: %s", ticket.lease_id, error)
            pause_s = _RENEW_AGAIN_S
        else:
            lost_at, pause_s = asked_at + held_s, held_s * _RENEW_AFTER


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
