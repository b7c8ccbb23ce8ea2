"""A decode engine without a model, in a process of its own: pulls blocks of tickets into a marked cache and looks at
every byte that the mover says has landed.

The mover, its thread and its transports are the product's; reads over NIXL can be made to fail half-way. Blocks whose
pull has ended belong to someone else at once: a byte that comes later shows.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import psutil

from cluster.config_transfer import KvTransferConfig
from cluster.errors import TransferFailed
from kv_transfer import connections
from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_permit import TicketRule
from kv_transfer.block_server import BlockServer
from kv_transfer.connections import Reader
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.ladder import LadderRules
from kv_transfer.mover import Mover, PullJob, PullResult
from kv_transfer.mover_thread import MoverThread
from kv_transfer.nixl_transport import NixlPeer, NixlTransport
from kv_transfer.ticket import Ticket, seal
from kv_transfer.transport import BlockRead, Endpoint
from protos.baton.v1 import kv_pb2 as pb
from tests.commanded_process import CommandedProcess
from tests.kv_transfer.byte_writer import BLOCK_TOKENS, FINGERPRINT, SECRET, Offered
from tests.kv_transfer.marked_blocks import SIZE, MarkedCache

_TASKS_OF_A_THREAD = 1  # of a MoverThread: it waits for its end
_IDLE_S = 10.0
MOST_CONNECTIONS = 8  # to a few workers, living and dead, so that some must go
_FOREIGN_MARKS = 0xFFFF << 32  # of blocks that are not a pull's target now

# fail: at once. half: after half of the blocks. hang: as half, but when it is cancelled. slow: pauses in the middle.
NixlFault = Literal["pass", "fail", "half", "hang", "slow"]


@dataclass(frozen=True)
class ReaderSpec:
    """`transfer`: keys of the section `kv_transfer`."""

    reader_id: str
    num_blocks: int = 2048
    host: str = "127.0.0.1"
    transfer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PullOrder:
    """`picks`: which of the ticket's blocks to pull, in which order. `cancel_s`: cancelled so long after its start.
    `slow_s`: the pause of a slow read. `forged`: signed with a key that the writer does not have."""

    request_id: str
    offered: Offered
    picks: tuple[int, ...]
    nixl: NixlFault = "pass"
    cancel_s: float | None = None
    slow_s: float = 0.5
    forged: bool = False


@dataclass(frozen=True)
class PullEnd:
    """`wrong_blocks`: of a pull that landed, those that hold a byte that is not the ticket's. `fallen`: the transports
    that were tried before."""

    request_id: str
    outcome: str
    transport: str
    reason: str
    seconds: float
    wrong_blocks: int
    fallen: tuple[str, ...]


@dataclass(frozen=True)
class ReaderState:
    """`foreign_writes`: blocks that were written when no pull had them as a target. `connections`: to sources, kept for
    the next pull; `nixl_peers`: those of them that NIXL knows."""

    pulling: int
    foreign_writes: int
    rss: int
    connections: int
    nixl_peers: int


@dataclass(frozen=True)
class Remains:
    """What is left of a reader that was closed. `sockets`: connections and listeners. `files`: that are open, more than
    before it was made."""

    threads: list[str]
    sockets: list[str]
    files: int


class ByteReader:
    """Parent's side; commands are the public methods of `ReaderProcess`."""

    def __init__(self, spec: ReaderSpec, namespace: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.spec = spec
        self.process = CommandedProcess(spec.reader_id, ReaderProcess, (spec,), environment, namespace)

    def wait_until_ready(self) -> None:
        self.process.wait_until_made()

    def begin(self, *orders: PullOrder) -> None:
        self.process.ask("begin", orders)

    def ends(self) -> list[PullEnd]:
        """Each once."""
        ends: list[PullEnd] = self.process.ask("ends")
        return ends

    def pull(self, order: PullOrder, within_s: float = 60.0) -> PullEnd:
        """Of a reader that pulls nothing else."""
        self.begin(order)
        end = time.monotonic() + within_s
        while not (ended := self.ends()):
            assert time.monotonic() < end, f"{order.request_id} does not end"
        return ended[0]

    def state(self) -> ReaderState:
        state: ReaderState = self.process.ask("state")
        return state

    def close(self) -> Remains:
        remains: Remains = self.process.ask("close")
        return remains


@dataclass
class _Pull:
    order: PullOrder
    target: list[int]
    began: float


class ReaderProcess:
    def __init__(self, spec: ReaderSpec) -> None:
        self._files = len(os.listdir("/proc/self/fd"))
        self._cache = MarkedCache(spec.num_blocks)
        self._free: list[int] = []
        self._foreign: dict[int, int] = {}
        self._foreign_writes = 0
        self._next_mark = _FOREIGN_MARKS
        self._give_away(list(range(spec.num_blocks)))
        self._pulls: dict[str, _Pull] = {}
        self._ends: list[PullEnd] = []
        config = KvTransferConfig.model_validate(spec.transfer)
        limits = StreamLimits(config.frame_kib << 10, config.in_flight_mib << 20)
        layout = self._cache.layout
        server = BlockServer(layout, TicketRule(SECRET, 1, BLOCK_TOKENS), limits, spec.host, spec.host)
        self._nixl = NixlTransport(layout, config.net_device)
        self._scripted = _ScriptedReads(self._nixl)
        self._reader = Reader(spec.reader_id, 0, FINGERPRINT, SIZE)
        self._rules = LadderRules.of(config)
        self._limits = limits
        self._server = server
        self._thread = MoverThread(self._make_mover, self._nixl.progress)

    def _make_mover(self) -> Mover:
        grpc = GrpcTransport(self._cache.layout, self._limits, self._server)
        self._loop = asyncio.get_running_loop()
        connections._MOST_KEPT = MOST_CONNECTIONS
        self._mover = Mover((self._scripted, grpc), self._reader, self._rules)
        return self._mover

    def step(self) -> None:
        now = time.monotonic()
        for request_id, pull in self._pulls.items():
            if pull.order.cancel_s is not None and now > pull.began + pull.order.cancel_s:
                self._thread.cancel([request_id])
        for result in self._thread.take_results():
            self._ended(self._pulls.pop(result.request_id), result)

    def begin(self, orders: tuple[PullOrder, ...]) -> None:
        for order in orders:
            ticket = order.offered.ticket
            target = self._take(len(order.picks))
            self._scripted.orders[ticket.lease_id] = order
            self._pulls[order.request_id] = _Pull(order, target, time.monotonic())
            sealed = seal(ticket, bytes(32) if order.forged else SECRET)
            source = tuple(ticket.block_ids[i] for i in order.picks)
            self._thread.pull(PullJob(order.request_id, ticket, sealed, source, tuple(target)))

    def ends(self) -> list[PullEnd]:
        ends, self._ends = self._ends, []
        return ends

    def state(self) -> ReaderState:
        return ReaderState(
            pulling=len(self._pulls),
            foreign_writes=self._foreign_writes,
            rss=psutil.Process().memory_info().rss,
            connections=len(self._mover._connections._kept),
            nixl_peers=self._nixl._peers.total(),
        )

    def close(self) -> Remains:
        assert not self._pulls, f"pulls are under way: {list(self._pulls)}"
        self._wait_until_idle()
        self._look_at_foreign(list(self._foreign))
        assert not self._foreign_writes, f"{self._foreign_writes} blocks were written after their pull"
        self._thread.close()
        gc.collect()
        mine = psutil.Process()
        return Remains(
            threads=[thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
            sockets=[f"{c.laddr} {c.raddr} {c.status}" for c in mine.net_connections("tcp")],
            files=len(os.listdir("/proc/self/fd")) - self._files,
        )

    def _wait_until_idle(self) -> None:
        """Releases and probes that were begun come to their end; then the loop has the tasks of its thread only."""
        give_up = time.monotonic() + _IDLE_S
        while True:
            try:
                self._mover.check_idle()
                tasks = asyncio.all_tasks(self._loop)
                assert len(tasks) == _TASKS_OF_A_THREAD, f"tasks of no pull: {tasks}"
                return
            except AssertionError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def _take(self, count: int) -> list[int]:
        taken = self._free[:count]
        assert len(taken) == count, "the reader has no block left"
        del self._free[:count]
        self._look_at_foreign(taken)
        for block_id in taken:
            del self._foreign[block_id]
        return taken

    def _ended(self, pull: _Pull, result: PullResult) -> None:
        seconds = time.monotonic() - pull.began
        wrong = 0
        if result.outcome == "landed":
            marks = [pull.order.offered.marks[i] for i in pull.order.picks]
            wrong = self._cache.wrong_blocks(pull.target, marks)
        self._give_away(pull.target)
        del self._scripted.orders[pull.order.offered.ticket.lease_id]
        request_id = pull.order.request_id
        fallen = tuple(rung.transport for rung in result.fallen)
        self._ends.append(PullEnd(request_id, result.outcome, result.transport, result.reason, seconds, wrong, fallen))

    def _give_away(self, ids: list[int]) -> None:
        marks = list(range(self._next_mark, self._next_mark + len(ids)))
        self._next_mark += len(ids)
        self._cache.fill(ids, marks)
        self._foreign.update(zip(ids, marks, strict=True))
        self._free += ids

    def _look_at_foreign(self, ids: list[int]) -> None:
        self._foreign_writes += self._cache.wrong_blocks(ids, [self._foreign[i] for i in ids])


class _ScriptedReads:
    """NIXL, with reads that fail half-way; `orders` by lease id."""

    name = "nixl"

    def __init__(self, nixl: NixlTransport) -> None:
        self._nixl = nixl
        self.orders: dict[str, PullOrder] = {}

    def turn(self) -> AbstractAsyncContextManager[None]:
        return self._nixl.turn()

    async def read(self, peer: NixlPeer, read: BlockRead) -> None:
        order = self.orders[pb.Ticket.FromString(read.ticket).lease_id]
        fault = order.nixl
        if fault == "pass":
            await self._nixl.read(peer, read)
            return
        half = len(read.source) // 2
        if fault != "fail" and half:
            await self._nixl.read(peer, replace(read, source=read.source[:half], target=read.target[:half]))
        if fault == "hang":
            await asyncio.Event().wait()
        if fault != "slow":
            raise TransferFailed("the test broke this read")
        await asyncio.sleep(order.slow_s)
        await self._nixl.read(peer, replace(read, source=read.source[half:], target=read.target[half:]))

    def offer(self) -> bytes:
        return self._nixl.offer()

    def connect(self, endpoint: Endpoint) -> NixlPeer:
        return self._nixl.connect(endpoint)

    async def probe(self, peer: NixlPeer) -> None:
        await self._nixl.probe(peer)

    def disconnect(self, peer: NixlPeer) -> None:
        self._nixl.disconnect(peer)

    def progress(self) -> None:
        self._nixl.progress()

    def close(self) -> None:
        self._nixl.close()


def through(offered: Offered, source: str) -> Offered:
    """The same offer, by way of another address."""
    ticket: Ticket = replace(offered.ticket, source=source)
    return Offered(ticket, offered.marks)
