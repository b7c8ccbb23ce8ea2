"""A prefill engine without a model, in a process of its own: leases blocks of a marked cache and gives the freed ones a
new content at once.

All that serves readers is the product's: lease book, KvSource, KvBlocks, NIXL. So a read of a block whose lease has
ended is a read of wrong bytes.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.kv_link import KvStats
from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_permit import TicketRule
from kv_transfer.block_server import BlockServer
from kv_transfer.fingerprint import Fingerprint
from kv_transfer.lease import Free, LeaseTable
from kv_transfer.lease_book import LeaseBook
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.source_server import KvSource, KvSourceServer
from kv_transfer.ticket import Ticket, prompt_digest
from kv_transfer.transport import Endpoint
from tests.commanded_process import CommandedProcess
from tests.kv_transfer.marked_blocks import MarkedCache

SECRET = b"a secret that only the tests know"
FINGERPRINT = Fingerprint.of({"model": "marked blocks", "block_size": "32"})
BLOCK_TOKENS = 32
_LIMITS = StreamLimits(256 << 10, 8 << 20)


@dataclass(frozen=True)
class WriterSpec:
    """`number` sets the marks of this start apart from those of all others. `host`: where it listens."""

    worker_id: str
    epoch: int
    number: int
    lease_s: float
    num_blocks: int = 1024
    host: str = "127.0.0.1"
    net_device: str | None = None


@dataclass(frozen=True)
class Offered:
    """A ticket, and the marks of its blocks at the time of the offer, in the same order."""

    ticket: Ticket
    marks: tuple[int, ...]


@dataclass(frozen=True)
class WriterState:
    """`free`: blocks that no lease holds. `streams`: of KvBlocks, open."""

    stats: KvStats
    free: int
    num_blocks: int
    streams: int
    refused: dict[str, int]
    threads: int


class ByteWriter:
    """Parent's side; commands are the public methods of `Writer`."""

    def __init__(self, spec: WriterSpec, namespace: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.spec = spec
        self.process = CommandedProcess(spec.worker_id, Writer, (spec,), environment, namespace)

    def wait_until_ready(self) -> None:
        """From then on `source` is the address of its KvSource."""
        self.process.wait_until_made()
        self.source: str = self.process.ask("address")

    def offer(self, num_blocks: int) -> Offered | None:
        """None: not so many blocks are free."""
        offered: Offered | None = self.process.ask("offer", num_blocks)
        return offered

    def state(self) -> WriterState:
        state: WriterState = self.process.ask("state")
        return state


class Writer:
    def __init__(self, spec: WriterSpec) -> None:
        self._spec = spec
        self._cache = MarkedCache(spec.num_blocks)
        self._next_mark = spec.number << 32
        self._marks = [0] * spec.num_blocks
        self._draw = random.Random(spec.number)
        self._free: list[int] = []
        self._give_new_content(list(range(spec.num_blocks)))
        self._book = LeaseBook(LeaseTable(spec.epoch, spec.lease_s), time.monotonic)
        layout = self._cache.layout
        rule = TicketRule(SECRET, spec.epoch, BLOCK_TOKENS)
        self._blocks = BlockServer(layout, rule, _LIMITS, spec.host, spec.host)
        self._nixl = NixlTransport(layout, spec.net_device)
        offers = {"nixl": self._nixl.offer(), "grpc": self._blocks.address.encode()}
        self._server = KvSourceServer(spec.host, spec.host)
        endpoints = (Endpoint(offers, layout),)
        self._server.start(KvSource(self._book, spec.epoch, FINGERPRINT, endpoints, lambda: self._book.stats((), 0)))

    def address(self) -> str:
        return self._server.address

    def step(self) -> None:
        """As an engine between two forward passes."""
        self._book.take_frees(self._take_back)
        self._nixl.progress()

    def offer(self, num_blocks: int) -> Offered | None:
        if num_blocks > len(self._free):
            return None
        ids = tuple(self._free[:num_blocks])
        del self._free[:num_blocks]
        lease_id = uuid.uuid4().hex
        self._book.offer(lease_id, ids)
        ticket = Ticket(
            attempt_id=lease_id,
            lease_id=lease_id,
            worker_id=self._spec.worker_id,
            epoch=self._spec.epoch,
            num_tokens=num_blocks * BLOCK_TOKENS,
            groups=(ids,),
            fingerprint=FINGERPRINT.digest,
            source=self.address(),
            prompt_digest=prompt_digest(()),
        )
        return Offered(ticket, tuple(self._marks[i] for i in ids))

    def state(self) -> WriterState:
        self._book.check_integrity()
        return WriterState(
            stats=self._book.stats((), 0),
            free=len(self._free),
            num_blocks=self._spec.num_blocks,
            streams=self._blocks.streams,
            refused=dict(self._blocks.refused),
            threads=len(os.listdir("/proc/self/task")),
        )

    def _take_back(self, free: Free) -> None:
        self._give_new_content(list(free.block_ids))

    def _give_new_content(self, ids: list[int]) -> None:
        marks = list(range(self._next_mark, self._next_mark + len(ids)))
        self._next_mark += len(ids)
        self._cache.fill(ids, marks)
        for block_id, mark in zip(ids, marks, strict=True):
            self._marks[block_id] = mark
        # Into any place of the queue: blocks of one offer lie scattered, and some are used again at once.
        self._free += ids
        self._draw.shuffle(self._free)
