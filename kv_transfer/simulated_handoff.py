"""The hand-off of a simulated engine: the product's own tickets, leases, KvSource and mover, over real gRPC; only the
bytes are pretended.

Implements `cluster.kv_link.Handoff`. A read takes `block_s` seconds a block on the injected clock and moves nothing.
Everything but KvSource's threads runs on one event loop.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace

from cluster.clock import Clock
from cluster.config_transfer import KvTransferConfig, RungConfig
from cluster.engine import TransferRung
from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from cluster.kv_link import KvStats
from cluster.tls import PLAIN, Channels
from kv_transfer.connections import Reader
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.ladder import LadderRules
from kv_transfer.lease import Free, LeaseTable
from kv_transfer.lease_book import LeaseBook
from kv_transfer.mover import Mover, PullJob
from kv_transfer.pull_counts import PullCounts
from kv_transfer.source_server import KvSource, KvSourceServer
from kv_transfer.ticket import unseal
from kv_transfer.ticket_writer import Prompt, TicketWriter
from kv_transfer.transport import BlockRead, Endpoint, Layout, Region

_ERRORS = {"stale": LeaseLost, "refused": TicketRefused}
_BLOCK_BYTES = 4096
_NO_PROMPT = Prompt(())  # nothing depends on what is not in the blocks
_SWEEPS_PER_LEASE = 4


@dataclass(frozen=True, slots=True)
class SimulatedLink:
    """`block_s`: seconds to move one block. The other fields are those of the connector's settings."""

    worker_id: str
    epoch: int
    listen_host: str
    advertise_host: str
    secret: bytes
    block_size: int
    num_blocks: int
    transfer: KvTransferConfig
    block_s: float
    channels: Channels = PLAIN


class PretendedTransport:
    """Every read succeeds when its time is over."""

    name = "simulated"

    def __init__(self, clock: Clock, block_s: float) -> None:
        self._clock = clock
        self._block_s = block_s

    def offer(self) -> bytes:
        return b""

    def connect(self, endpoint: Endpoint) -> Endpoint:
        return endpoint

    async def probe(self, peer: Endpoint) -> None: ...

    def turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def read(self, peer: Endpoint, read: BlockRead) -> None:
        await self._clock.sleep(len(read.source) * self._block_s)

    def disconnect(self, peer: Endpoint) -> None: ...

    def progress(self) -> None: ...

    def close(self) -> None: ...


class SimulatedHandoff:
    def __init__(self, link: SimulatedLink, model: str, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._fingerprint = Fingerprint.of({"engine": "simulated", "model": model, "block_size": str(link.block_size)})
        self._transport = PretendedTransport(clock, link.block_s)
        self._book = LeaseBook(LeaseTable(link.epoch, link.transfer.lease_s), clock.now, self._frees_wait)
        self._counts = PullCounts()
        self._recomputed = 0
        self._freed: Callable[[Sequence[int]], None]
        self._server: KvSourceServer | None = None

    async def start(self, freed: Callable[[Sequence[int]], None]) -> str:
        link = self._link
        self._freed = freed
        self._loop = asyncio.get_running_loop()
        reader = Reader(f"{link.worker_id}/{link.epoch}", 0, self._fingerprint, _BLOCK_BYTES, link.channels)
        self._mover = Mover([self._transport], reader, _rules(link.transfer))
        layout = Layout((Region(0, _BLOCK_BYTES, _BLOCK_BYTES, link.num_blocks),))
        endpoint = Endpoint({self._transport.name: self._transport.offer()}, layout)
        self._server = KvSourceServer(link.listen_host, link.advertise_host, link.channels)
        self._server.start(KvSource(self._book, link.epoch, self._fingerprint, (endpoint,), self._count))
        self._writer = TicketWriter(
            link.worker_id,
            link.epoch,
            self._server.address,
            self._fingerprint.digest,
            link.secret,
            link.transfer.lease_s,
        )
        self._sweeping = asyncio.create_task(self._sweep())
        return self._server.address

    @property
    def fingerprint(self) -> bytes:
        return self._fingerprint.digest

    def offer(self, attempt_id: str, num_tokens: int, block_ids: Sequence[int]) -> bytes:
        lease_id = uuid.uuid4().hex
        self._book.offer(lease_id, tuple(block_ids))
        return self._writer.write(attempt_id, lease_id, _NO_PROMPT, num_tokens, tuple(block_ids))

    def tokens_in(self, ticket: bytes) -> int:
        return unseal(ticket, self._link.secret, self._link.block_size).num_tokens

    async def pull(self, ticket: bytes, missing_blocks: int) -> tuple[TransferRung, ...]:
        opened = unseal(ticket, self._link.secret, self._link.block_size)
        if missing_blocks == 0:
            self._mover.release(opened)
            return (TransferRung("local", "landed"),)
        blocks = opened.block_ids[-missing_blocks:]
        result = await self._mover.pull(PullJob(opened.attempt_id, opened, ticket, blocks, blocks))
        self._counts.add(result)
        if result.outcome == "cancelled":
            raise asyncio.CancelledError
        if result.outcome != "landed":
            self._recomputed += 1
            raise _ERRORS.get(result.outcome, TransferFailed)(result.reason)
        return result.rungs

    async def release(self, lease_id: str) -> None:
        self._book.release(lease_id)
        self._take_back()

    async def stats(self) -> KvStats:
        self._take_back()
        return self._count()

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        self._sweeping.cancel()
        await asyncio.gather(self._sweeping, return_exceptions=True)
        await self._mover.close()
        await asyncio.to_thread(server.close)

    def check_integrity(self) -> None:
        self._book.check_integrity()

    def _count(self) -> KvStats:
        return self._book.stats(self._counts.transfers, self._recomputed)

    def _frees_wait(self) -> None:
        """On a thread of KvSource: the engine's blocks may be touched on its own loop only."""
        self._loop.call_soon_threadsafe(self._take_back)

    def _take_back(self) -> None:
        def give_back(free: Free) -> None:
            self._freed(free.block_ids)

        self._book.take_frees(give_back)

    async def _sweep(self) -> None:
        """Expiry is seen by whoever looks; an engine that waits for blocks does not look."""
        while True:
            await self._clock.sleep(self._link.transfer.lease_s / _SWEEPS_PER_LEASE)
            self._take_back()


def _rules(transfer: KvTransferConfig) -> LadderRules:
    """A ladder of the one pretended transport, which may take as long as the injected clock makes it."""
    rung = RungConfig(mib_per_s=1, floor_s=transfer.nixl.ceiling_s, ceiling_s=transfer.nixl.ceiling_s)
    return replace(LadderRules.of(transfer), prefer=PretendedTransport.name, rungs={PretendedTransport.name: rung})
