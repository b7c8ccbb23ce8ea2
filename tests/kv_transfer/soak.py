"""A reader, writers and fronts under random faults from a seed: which pull suffers what, and what its end may be.

Writers are stopped, killed and started anew while pulls from them are under way; the reader is stopped, too. The faults
of single pulls are on the wire, between the product's own parts.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from kv_transfer.ladder import LadderRules
from tests.kv_transfer.byte_reader import ByteReader, NixlFault, PullEnd, PullOrder, ReaderSpec, through
from tests.kv_transfer.byte_writer import ByteWriter, Offered, WriterSpec
from tests.kv_transfer.faulty_front import CallFault, FaultyFront, Plan, StreamFault, StreamPlan

OUTCOMES = {"landed", "failed", "skipped", "refused", "stale", "cancelled"}
TRANSFER: dict[str, Any] = {
    "connect_deadline_s": 1.0,
    "probe_s": 0.4,
    "circuit_open_s": 0.1,
    "circuit_most_s": 0.4,
    "nixl": {"mib_per_s": 16.0, "factor": 1.0, "floor_s": 0.4, "ceiling_s": 0.8},
    "grpc": {"mib_per_s": 8.0, "factor": 1.0, "floor_s": 0.5, "ceiling_s": 1.0},
    "frame_kib": 256,
    "in_flight_mib": 8,
}
_LEASE_S = {"writer-0": 2.0, "writer-1": 0.35}
_STOCK = 6  # tickets ahead of their pulls, so that there are some when their writer is stopped or dead
_AT_ONCE = 10
_CALL_FAULTS: tuple[CallFault, ...] = ("refuse", "stall", "lose")
_STREAM_FAULTS: tuple[StreamFault, ...] = tuple(f for f in get_args(StreamFault) if f != "pass")
_NIXL_FAULTS: tuple[NixlFault, ...] = ("fail", "half", "half", "hang", "slow", "slow")


def longest_pull_s(rules: LadderRules) -> float:
    """Within which every pull must have ended: connect, claim and complete, and each rung with its probe."""
    rungs = sum(rules.probe_s + rung.ceiling_s for rung in rules.rungs.values())
    return 3 * rules.connect_s + rungs


def draw_plan(draw: random.Random) -> Plan:
    """What happens to the calls for one lease; often nothing."""
    fault = draw.random()
    if fault < 0.08:
        return Plan(claim=(draw.choice(_CALL_FAULTS),))
    if fault < 0.14:  # the first claim is granted, its renewals are not heard
        return Plan(claim=("pass", *[draw.choice(_CALL_FAULTS)] * 20))
    if fault < 0.22:
        return Plan(complete=(draw.choice(_CALL_FAULTS),) * draw.randint(1, 3))
    if fault < 0.26:
        return Plan(release=(draw.choice(_CALL_FAULTS),))
    if fault < 0.6:
        broken = StreamPlan(draw.choice(_STREAM_FAULTS), draw.choice([0, 0, 1, 2, 5]))
        return Plan(read=(broken,) * draw.choice([1, 1, 2, 12]))
    return Plan()


@dataclass
class Source:
    """One worker through all its lives. Readers reach it directly, or by a front that spoils calls, or by one that
    leaves them gRPC only."""

    worker_id: str
    writer: ByteWriter
    front: FaultyFront
    grpc_front: FaultyFront
    stock: list[Offered] = field(default_factory=list)
    stopped_until: float = 0.0

    def aim(self) -> None:
        for front in (self.front, self.grpc_front):
            front.aim(self.writer.source)


class Soak:
    """`ends` are those of all pulls so far."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._starts = 0
        self.reader = ByteReader(ReaderSpec("reader/1", num_blocks=6144, transfer=TRANSFER))
        writers = [self._start(worker_id, epoch=1) for worker_id in _LEASE_S]
        self.reader.wait_until_ready()
        self.sources = [self._source(writer) for writer in writers]
        self.orders: dict[str, PullOrder] = {}
        self.ends: dict[str, PullEnd] = {}
        self.lives: Counter[str] = Counter()

    def run(self, pulls: int) -> None:
        """Returns when all have ended."""
        while len(self.ends) < pulls:
            self._mend()
            for source in self.sources:
                self._refill(source)
            while len(self.orders) < pulls and len(self.orders) - len(self.ends) < _AT_ONCE and self._begin():
                self._maybe_break_something()
            self.ends.update({end.request_id: end for end in self.reader.ends()})
            time.sleep(0.002)
        for source in self.sources:
            source.stopped_until = min(source.stopped_until, time.monotonic())
        self._mend()

    def close(self) -> None:
        self.reader.process.kill()
        for source in self.sources:
            source.writer.process.kill()
            source.front.close()
            source.grpc_front.close()

    def _start(self, worker_id: str, epoch: int) -> ByteWriter:
        self._starts += 1
        return ByteWriter(WriterSpec(worker_id, epoch, self._starts, _LEASE_S[worker_id], num_blocks=2048))

    def _source(self, writer: ByteWriter) -> Source:
        writer.wait_until_ready()
        source = Source(writer.spec.worker_id, writer, FaultyFront(), FaultyFront())
        source.grpc_front.spoil_nixl = True
        source.aim()
        return source

    def _refill(self, source: Source) -> None:
        if source.stopped_until or len(source.stock) >= _STOCK:
            return
        low, high = self._draw.choice([(1, 1), (2, 8), (2, 8), (9, 60), (9, 60), (61, 400)])
        offered = source.writer.offer(self._draw.randint(low, high))
        if offered is not None:
            source.stock.append(offered)

    def _begin(self) -> bool:
        source = self._draw.choice(self.sources)
        if not source.stock:
            return False
        offered = source.stock.pop(0)
        order = self._order(source, offered)
        self.orders[order.request_id] = order
        self.reader.begin(order)
        return True

    def _order(self, source: Source, offered: Offered) -> PullOrder:
        draw, blocks = self._draw, len(offered.marks)
        picks = tuple(range(draw.choice([0, 0, draw.randrange(blocks)]), blocks))
        order = PullOrder(f"pull-{len(self.orders)}", offered, picks)
        if draw.random() < 0.08:
            order = replace(order, cancel_s=draw.choice([0.0, 0.003, 0.02, 0.3]))
        if draw.random() < 0.25:
            order = replace(order, nixl=draw.choice(_NIXL_FAULTS), slow_s=draw.uniform(0.1, 0.5))
        way = draw.random()
        if way < 0.3:
            return order
        front = source.front if way < 0.6 else source.grpc_front
        front.plan(offered.ticket.lease_id, draw_plan(draw))
        return replace(order, offered=through(offered, front.address), forged=draw.random() < 0.03)

    def _maybe_break_something(self) -> None:
        event, source = self._draw.random(), self._draw.choice(self.sources)
        if event < 0.015 and not source.stopped_until:
            self.lives["writer stopped"] += 1
            source.writer.process.signal(signal.SIGSTOP)
            source.stopped_until = time.monotonic() + self._draw.choice([0.05, 0.4, 1.5])
        elif event < 0.021:
            self.lives["writer killed"] += 1
            self._replace(source)
        elif event < 0.028:
            self.lives["reader stopped"] += 1
            self.reader.process.signal(signal.SIGSTOP)
            time.sleep(self._draw.choice([0.05, 0.5]))
            self.reader.process.signal(signal.SIGCONT)
        elif event < 0.04:
            source.front.spoil_connect(self._draw.choice(_CALL_FAULTS))

    def _replace(self, source: Source) -> None:
        """The same worker, a new epoch; its fronts keep their addresses."""
        before = source.writer
        before.process.kill()
        source.stopped_until = 0.0
        source.writer = self._start(source.worker_id, before.spec.epoch + 1)
        source.writer.wait_until_ready()
        source.aim()

    def _mend(self) -> None:
        for source in self.sources:
            if source.stopped_until and time.monotonic() >= source.stopped_until:
                source.writer.process.signal(signal.SIGCONT)
                source.stopped_until = 0.0
