"""A source as an engine would run it, without an engine: lease book, KvSource over gRPC, a transport under our hand."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cluster.errors import TransferFailed
from cluster.kv_link import KvStats
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.lease import Free, LeaseTable
from kv_transfer.lease_book import LeaseBook
from kv_transfer.source_server import KvSource, KvSourceServer
from kv_transfer.ticket import Ticket, prompt_digest
from kv_transfer.transport import Endpoint, Layout, ReadState, Region

EPOCH = 3
BLOCK_BYTES = 64
FINGERPRINT = Fingerprint.of({"model": "m", "block_size": "32"})
LAYOUT = Layout((Region(0, BLOCK_BYTES, BLOCK_BYTES, 100),))
ENDPOINT = Endpoint({"scripted": b"agent"}, LAYOUT)


class HandClock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Source:
    """One prefill engine's side: offers leases, takes blocks back as the engine's thread would."""

    def __init__(self, epoch: int = EPOCH, lease_s: float = 10.0, endpoint: Endpoint = ENDPOINT) -> None:
        self.clock = HandClock()
        self.epoch = epoch
        self.freed: list[Free] = []
        self.ended = threading.Event()
        self.book = LeaseBook(LeaseTable(epoch, lease_s), self.clock, self.ended.set)
        self.server = KvSourceServer("127.0.0.1", "127.0.0.1")
        self.server.start(KvSource(self.book, epoch, FINGERPRINT, (endpoint,), self.stats))

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
        self.book.take_frees(self.freed.append)
        self.book.check_integrity()
        return [block for free in self.freed for block in free.block_ids]


@pytest.fixture
def source() -> Iterator[Source]:
    running = Source()
    yield running
    running.server.close()


@dataclass
class ScriptedTransport:
    """Reads move until the test sets their state; `quiet` says whether one may be let go of."""

    name: str = "scripted"
    started: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    connected: int = 0
    disconnected: int = 0
    released: int = 0
    polls: int = 0
    state: ReadState = ReadState.DONE
    quiet: bool = True
    refuse_start: bool = False

    def endpoint(self) -> Endpoint:
        return Endpoint({self.name: b""}, LAYOUT)

    def connect(self, endpoint: Endpoint) -> str:
        self.connected += 1
        return endpoint.offers[self.name].decode()

    def disconnect(self, peer: str) -> None:
        self.disconnected += 1

    def start(self, peer: str, source: tuple[int, ...], target: tuple[int, ...]) -> int:
        if self.refuse_start:
            raise TransferFailed("the peer is gone")
        self.started.append((source, target))
        return len(self.started)

    def poll(self, read: int) -> ReadState:
        self.polls += 1
        return self.state

    def cancel(self, read: int) -> bool:
        self.released += self.quiet
        return self.quiet

    def progress(self) -> None: ...

    def close(self) -> None: ...
