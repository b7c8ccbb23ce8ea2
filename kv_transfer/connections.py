"""A reader's connections to sources, made once for each epoch of a source: gRPC channel and checked fingerprint; and
below each the links over which its blocks can be read, one for each transport, made when first wanted.

A connection or link in use is never torn down: forgetting it only keeps new users away, the last user closes it. Nobody
says goodbye: what nobody has used for long goes when another connection is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from cluster.tls import PLAIN, Channels
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.source_client import SourceClient
from kv_transfer.ticket import Ticket
from kv_transfer.transport import Endpoint, Transport
from kv_transfer.unbroken import to_its_end

_MOST_KEPT = 256
_IDLE_S = 600.0

Origin = tuple[str, int]
"""(host:port of KvSource, epoch): one start of one engine."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads. `id` names this engine start to sources; `rank` says which part of each block is ours, `block_bytes`
    how large that part is over all layers. `channels`: how sources are dialled."""

    id: str
    rank: int
    fingerprint: Fingerprint
    block_bytes: int
    channels: Channels = PLAIN


@dataclass(slots=True, eq=False)
class Link:
    """One transport to one source. `proven`: bytes have come over it."""

    transport: Transport[Any]
    peer: Any
    proven: bool = False
    users: int = 0
    forgotten: bool = False


@dataclass(slots=True, eq=False)
class Connection:
    worker_id: str
    origin: Origin
    client: SourceClient
    endpoint: Endpoint
    links: dict[str, Link] = field(default_factory=dict)
    users: int = 0
    left_at: float = 0.0  # by its last user
    forgotten: bool = False

    def __str__(self) -> str:
        return f"{self.worker_id} at {self.origin[0]}"


class Connections:
    """For one rank. `connect_s`: deadline of connecting and of each call, seconds. `now`: monotonic seconds."""

    def __init__(
        self,
        transports: Sequence[Transport[Any]],
        reader: Reader,
        connect_s: float,
        now: Callable[[], float],
    ) -> None:
        self._transports: Mapping[str, Transport[Any]] = {transport.name: transport for transport in transports}
        self._reader = reader
        self._connect_s = connect_s
        self._now = now
        self._kept: dict[Origin, Connection] = {}  # least recently used first
        # Each lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[Origin, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        links = sum(len(connection.links) for connection in self._kept.values())
        return f"<Connections kept={len(self._kept)} links={links} users={sum(c.users for c in self._kept.values())}>"

    @property
    def transports(self) -> tuple[str, ...]:
        """What we can read over."""
        return tuple(self._transports)

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
        async with self.held(connection):
            try:
                yield connection
            except (LeaseLost, TicketRefused):
                raise  # of this ticket, not of the connection
            except TransferFailed:
                self._forget(connection)
                raise

    @asynccontextmanager
    async def held(self, connection: Connection) -> AsyncIterator[None]:
        """Keeps a connection that is open from being closed meanwhile."""
        connection.users += 1
        try:
            yield
        finally:
            connection.users -= 1
            connection.left_at = self._now()
            if not connection.forgotten:
                self._kept[connection.origin] = self._kept.pop(connection.origin)
            await self._close_unused(connection)

    @contextmanager
    def link(self, connection: Connection, transport: str) -> Iterator[Link]:
        """A link over that transport, kept meanwhile; new users make a new one after a `TransferFailed`, which making
        it may raise."""
        link = connection.links.get(transport) or self._new_link(connection, transport)
        link.users += 1
        try:
            yield link
        except (LeaseLost, TicketRefused):
            raise  # of this ticket, not of the link
        except TransferFailed:
            link.forgotten = True
            if connection.links.get(transport) is link:
                del connection.links[transport]
            raise
        finally:
            link.users -= 1
            _disconnect_unused(link)

    def client(self, source: str) -> SourceClient:
        """For a single call, without connecting; the caller closes it."""
        return SourceClient(source, self._reader.id, self._connect_s, self._reader.channels)

    async def close(self) -> None:
        for connection in list(self._kept.values()):
            self._forget(connection)
            await self._close_unused(connection)

    def check_idle(self) -> None:
        used = [c for c in self._kept.values() if c.users or any(link.users for link in c.links.values())]
        assert not used, f"connections without a pull are in use: {', '.join(map(str, used))}"

    async def _connected(self, ticket: Ticket) -> Connection:
        origin = (ticket.source, ticket.epoch)
        async with self._locks.setdefault(origin, asyncio.Lock()):
            if origin not in self._kept:
                await self._drop_idle()
                self._kept[origin] = await self._connect(ticket)
            return self._kept[origin]

    async def _connect(self, ticket: Ticket) -> Connection:
        client = self.client(ticket.source)
        rank = self._reader.rank
        try:
            endpoints = await client.connect(ticket.epoch, self._reader.fingerprint)
            if rank >= len(endpoints):
                raise TransferFailed(f"{ticket.source} has {len(endpoints)} ranks, ours is rank {rank}")
        except BaseException:
            await to_its_end(client.close())
            raise
        return Connection(ticket.worker_id, (ticket.source, ticket.epoch), client, endpoints[rank])

    def _new_link(self, connection: Connection, name: str) -> Link:
        transport = self._transports[name]
        link = connection.links[name] = Link(transport, transport.connect(connection.endpoint))
        return link

    async def _drop_idle(self) -> None:
        """Those that nobody has used for long, and those that are too many with the next one."""
        idle = [c for c in self._kept.values() if not c.users]
        too_many, long_ago = len(self._kept) + 1 - _MOST_KEPT, self._now() - _IDLE_S
        for place, connection in enumerate(idle):
            if place < too_many or connection.left_at < long_ago:
                self._forget(connection)
                await self._close_unused(connection)

    def _forget(self, connection: Connection) -> None:
        connection.forgotten = True
        self._kept = {origin: kept for origin, kept in self._kept.items() if kept is not connection}

    async def _close_unused(self, connection: Connection) -> None:
        if not connection.forgotten or connection.users:
            return
        links, connection.links = connection.links, {}
        for link in links.values():
            link.forgotten = True
            _disconnect_unused(link)
        await to_its_end(connection.client.close())


def _disconnect_unused(link: Link) -> None:
    if link.forgotten and not link.users:
        link.transport.disconnect(link.peer)
