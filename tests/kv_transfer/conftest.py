"""A source as an engine would run it, without an engine: lease book, KvSource over gRPC; and transports that do what
the test says."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import grpc
import pytest

from cluster.config_transfer import RungConfig
from cluster.errors import Overloaded, TransferFailed
from cluster.kv_link import KvStats
from kv_transfer.circuit import CircuitTimes
from kv_transfer.connections import Reader
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.growing_exports import GrowingExports
from kv_transfer.ladder import LadderRules
from kv_transfer.lease import Free, LeaseTable
from kv_transfer.lease_book import LeaseBook
from kv_transfer.mover import Mover, PullJob
from kv_transfer.source_server import KvSource, KvSourceServer
from kv_transfer.ticket import Ticket, prompt_digest, seal
from kv_transfer.ticket_writer import TicketWriter
from kv_transfer.transport import BlockRead, Endpoint, Interrupted, Layout, Region
from protos.baton.v1 import kv_pb2 as pb
from tests.waiting import eventually

EPOCH = 3
BLOCK_BYTES = 64
BLOCK_SIZE = 32
SECRET = b"a secret that only the tests know"
FINGERPRINT = Fingerprint.of({"model": "m", "block_size": "32"})
LAYOUT = Layout((Region(0, BLOCK_BYTES, BLOCK_BYTES, 100),))
ENDPOINT = Endpoint({"fast": b"agent", "slow": b"agent"}, LAYOUT)
READER = Reader("decode-0/1", 0, FINGERPRINT, BLOCK_BYTES)


class HandClock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Fault(Enum):
    """What a call meets. STALL: it is answered when the test is over. BUSY: the peer has no room. INTERRUPTED: another
    one could not be ended alone."""

    ERROR = "error"
    BUSY = "busy"
    INTERRUPTED = "interrupted"
    STALL = "stall"


class FaultyKvSource(KvSource):
    """`faults`: by name of the method and number of the call, from 1."""

    faults: dict[tuple[str, int], Fault]

    def prepare(self) -> None:
        self.faults = {}
        self.calls: dict[str, int] = {}
        self.met = threading.Event()
        self.over = threading.Event()

    def _meet(self, method: str, context: grpc.ServicerContext) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        fault = self.faults.get((method, self.calls[method]))
        if fault is not None:
            self.met.set()
        if fault is Fault.ERROR:
            context.abort(grpc.StatusCode.INTERNAL, "as the test wants it")
        if fault is Fault.STALL:
            self.over.wait(30)

    def Connect(self, request: pb.ConnectRequest, context: grpc.ServicerContext) -> pb.ConnectResponse:
        self._meet("Connect", context)
        return super().Connect(request, context)

    def Claim(self, request: pb.ClaimRequest, context: grpc.ServicerContext) -> pb.ClaimResponse:
        self._meet("Claim", context)
        return super().Claim(request, context)

    def Complete(self, request: pb.CompleteRequest, context: grpc.ServicerContext) -> pb.CompleteResponse:
        self._meet("Complete", context)
        return super().Complete(request, context)

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseResponse:
        self._meet("Release", context)
        return super().Release(request, context)

    def Follow(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> pb.FollowResponse:
        self._meet("Follow", context)
        return super().Follow(request, context)


class Source:
    """One prefill engine's side: offers leases, takes blocks back as the engine's thread would."""

    def __init__(self, epoch: int = EPOCH, lease_s: float = 10.0, endpoint: Endpoint = ENDPOINT) -> None:
        self.clock = HandClock()
        self.epoch = epoch
        self.freed: list[Free] = []
        self.ended = threading.Event()
        self.book = LeaseBook(LeaseTable(epoch, lease_s), self.clock, self.ended.set)
        self.server = KvSourceServer("127.0.0.1", "127.0.0.1")
        writer = TicketWriter("prefill-0", epoch, self.server.address, FINGERPRINT.digest, SECRET, lease_s)
        self.growing = GrowingExports(self.book, writer, BLOCK_SIZE)
        self.service = FaultyKvSource(self.book, epoch, FINGERPRINT, (endpoint,), self.stats, self.growing)
        self.service.prepare()
        self.server.start(self.service)

    def stats(self) -> KvStats:
        return self.book.stats((), 0)

    def offer(self, blocks: tuple[int, ...] = (4, 5, 6)) -> Ticket:
        lease_id = uuid.uuid4().hex
        self.book.offer(lease_id, blocks)
        return Ticket(
            attempt_id="attempt",
            lease_id=lease_id,
            worker_id="prefill-0",
            epoch=self.epoch,
            num_tokens=32 * len(blocks),
            groups=(blocks,),
            fingerprint=FINGERPRINT.digest,
            source=self.server.address,
            prompt_digest=prompt_digest(()),
        )

    def take_back(self) -> list[int]:
        """The blocks that have come back so far."""
        self.book.take_frees(self._give_back)
        self.book.check_integrity()
        return [block for free in self.freed for block in free.block_ids]

    def _give_back(self, free: Free) -> None:
        self.freed.append(free)
        self.growing.forget(free.lease_id)

    def close(self) -> None:
        self.service.over.set()
        self.server.close()


@pytest.fixture
def source() -> Iterator[Source]:
    running = Source()
    yield running
    running.close()


def job(ticket: Ticket, blocks: int = 3, request_id: str = "request") -> PullJob:
    target = tuple(range(50, 50 + blocks))
    return PullJob(request_id, ticket, seal(ticket, SECRET), ticket.block_ids[-blocks:], target)


def rules(
    probe_s: float = 2.0, read_s: float = 5.0, open_s: float = 60.0, forbid: frozenset[str] = frozenset()
) -> LadderRules:
    rung = RungConfig(mib_per_s=100, floor_s=read_s, ceiling_s=read_s)
    return LadderRules(
        prefer="fast",
        forbid=forbid,
        rungs={"fast": rung, "slow": rung},
        connect_s=10.0,
        probe_s=probe_s,
        circuits=CircuitTimes(open_s, 8 * open_s),
    )


@dataclass
class ScriptedTransport:
    """Reads succeed at once, unless told otherwise. While `lingering`, a read does not end however it is told to: as
    one whose bytes may still arrive."""

    name: str = "fast"
    connect_fault: bool = False
    probe_fault: Fault | None = None
    read_fault: Fault | None = None
    reads: list[BlockRead] = field(default_factory=list)
    probes: int = 0
    connected: int = 0
    disconnected: int = 0
    at_work: int = 0
    closed: bool = False
    lingering: bool = False
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(100))

    def offer(self) -> bytes:
        return b""

    def connect(self, endpoint: Endpoint) -> str:
        if self.connect_fault:
            raise TransferFailed("no way to the peer")
        self.connected += 1
        return endpoint.offers[self.name].decode()

    async def probe(self, peer: str) -> None:
        self.probes += 1
        await self._meet(lambda: self.probe_fault)

    def turn(self) -> asyncio.Semaphore:
        return self.turns

    async def read(self, peer: str, read: BlockRead) -> None:
        self.reads.append(read)
        try:
            await self._meet(lambda: self.read_fault)
        finally:
            while self.lingering:
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    continue

    def disconnect(self, peer: str) -> None:
        self.disconnected += 1

    def progress(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    async def _meet(self, fault: Callable[[], Fault | None]) -> None:
        self.at_work += 1
        try:
            while fault() is Fault.STALL:  # noqa: ASYNC110 (set from other threads as well)
                await asyncio.sleep(0.001)
        finally:
            self.at_work -= 1
        if fault() is Fault.ERROR:
            raise TransferFailed("as the test wants it")
        if fault() is Fault.BUSY:
            raise Overloaded("there is no room")
        if fault() is Fault.INTERRUPTED:
            raise Interrupted("another read could not be stopped")


@pytest.fixture
def fast() -> ScriptedTransport:
    return ScriptedTransport("fast")


@pytest.fixture
def slow() -> ScriptedTransport:
    return ScriptedTransport("slow")


@asynccontextmanager
async def moving(fast: ScriptedTransport, slow: ScriptedTransport, by: LadderRules) -> AsyncIterator[Mover]:
    """In the end nothing is under way or open."""
    made = Mover([fast, slow], READER, by)
    yield made
    await eventually(lambda: "farewells=0" in repr(made))
    made.check_idle()
    await made.close()
    for transport in (fast, slow):
        assert (transport.at_work, transport.connected - transport.disconnected, transport.closed) == (0, 0, True)
