"""A reader's connections to sources, made once for each epoch of a source: gRPC channel, checked fingerprint,
transport peer.

A connection in use is never torn down: forgetting it only keeps new pulls away, the last pull closes it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.source_client import SourceClient
from kv_transfer.ticket import Ticket
from kv_transfer.transport import Transport

_MOST_KEPT = 256


@dataclass(slots=True, eq=False)
class Connection:
    worker_id: str
    epoch: int
    client: SourceClient
    peer: Any
    num_blocks: int
    users: int = 0
    forgotten: bool = False


class Connections:
    """For one rank: `rank` selects the source's endpoint. `connect_s`: deadline of connecting and of each call,
    seconds."""

    def __init__(
        self, transport: Transport[Any, Any], fingerprint: Fingerprint, reader_id: str, rank: int, connect_s: float
    ) -> None:
        self._transport = transport
        self._fingerprint = fingerprint
        self._reader_id = reader_id
        self._rank = rank
        self._connect_s = connect_s
        self._kept: dict[tuple[str, int], Connection] = {}
        self._locks: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    def __repr__(self) -> str:
        return f"<Connections kept={len(self._kept)} users={sum(c.users for c in self._kept.values())}>"

    @asynccontextmanager
    async def to(self, ticket: Ticket) -> AsyncIterator[Connection]:
        """The connection to the ticket's source, kept open meanwhile; new pulls make a new one after a
        `TransferFailed`.

        Raises `TransferFailed` within the deadline, `LeaseLost` (other epoch) and `FingerprintMismatch`.
        """
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._connected(ticket)
        except TimeoutError:
            raise TransferFailed(f"{ticket.source}: not connected within {self._connect_s:g} s") from None
        connection.users += 1
        try:
            yield connection
        except (LeaseLost, TicketRefused):
            raise  # of this ticket, not of the connection
        except TransferFailed:
            self._forget(connection)
            raise
        finally:
            connection.users -= 1
            await self._close_unused(connection)

    def client(self, source: str) -> SourceClient:
        """For a single call, without connecting; the caller closes it."""
        return SourceClient(source, self._reader_id, self._connect_s)

    async def close(self) -> None:
        for connection in list(self._kept.values()):
            self._forget(connection)
            await self._close_unused(connection)

    async def _connected(self, ticket: Ticket) -> Connection:
        key = (ticket.source, ticket.epoch)
        async with self._locks[key]:
            if key not in self._kept:
                self._kept[key] = await self._connect(ticket)
                await self._drop_older(self._kept[key])
            return self._kept[key]

    async def _connect(self, ticket: Ticket) -> Connection:
        client = self.client(ticket.source)
        try:
            endpoints = await client.connect(ticket.epoch, self._fingerprint)
            if self._rank >= len(endpoints):
                raise TransferFailed(f"{ticket.source} has {len(endpoints)} ranks, ours is rank {self._rank}")
            endpoint = endpoints[self._rank]
            peer = self._transport.connect(endpoint)
        except BaseException:
            await client.close()
            raise
        return Connection(ticket.worker_id, ticket.epoch, client, peer, endpoint.layout.num_blocks)

    async def _drop_older(self, newer: Connection) -> None:
        """A worker that came back has a new epoch, its old one will never answer again; and there is a limit to what
        we keep."""
        stale = [c for c in self._kept.values() if c.worker_id == newer.worker_id and c.epoch < newer.epoch]
        idle = [c for c in self._kept.values() if not c.users and c is not newer]
        for connection in [*stale, *idle[: max(0, len(self._kept) - _MOST_KEPT)]]:
            self._forget(connection)
            await self._close_unused(connection)

    def _forget(self, connection: Connection) -> None:
        connection.forgotten = True
        self._kept = {key: kept for key, kept in self._kept.items() if kept is not connection}
        unused = [key for key, lock in self._locks.items() if not lock.locked() and key not in self._kept]
        for key in unused:
            del self._locks[key]

    async def _close_unused(self, connection: Connection) -> None:
        if connection.forgotten and not connection.users:
            self._transport.disconnect(connection.peer)
            await connection.client.close()
