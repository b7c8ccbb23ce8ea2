"""The writing process of the transfer benchmark: a KV cache of known bytes, offered over every transport."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_permit import TicketRule
from kv_transfer.block_server import BlockServer
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.ticket import Ticket, seal
from kv_transfer.transport import Endpoint
from tests.benchmarks.bare_transfers import BareNixl, BareServer
from tests.benchmarks.kv_caches import BLOCK_TOKENS, CacheShape, KvCache

RULE = TicketRule(b"secret of a benchmark", 1, BLOCK_TOKENS)
_PROGRESS_EVERY_S = 0.005  # as the mover's thread does while a lease is open
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Offers:
    """How to read from the writer: over our transports, and bare."""

    endpoint: Endpoint
    bare_nixl: bytes
    bare_grpc: str


class MemoryPeak:
    """Of this process, in MiB above what it had when this was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self._before = _status_kib("VmRSS")

    def above(self) -> float:
        return (_status_kib("VmHWM") - self._before) / 1024


class Writer:
    """This process's end of the pipe to the writer."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.offers: Offers = pipe.recv()

    def begin_peak(self) -> None:
        self._ask("begin peak")

    def peak_mib(self) -> float:
        return float(self._ask("end peak"))

    def _ask(self, word: str) -> Any:
        self._pipe.send(word)
        return self._pipe.recv()


def ticket_for(block_ids: tuple[int, ...]) -> bytes:
    ticket = Ticket(
        attempt_id="attempt",
        lease_id="lease",
        worker_id="prefill-0",
        epoch=RULE.epoch,
        num_tokens=len(block_ids) * BLOCK_TOKENS,
        groups=(block_ids,),
        fingerprint=b"fingerprint",
        source="127.0.0.1:1",
        prompt_digest=b"digest",
    )
    return seal(ticket, RULE.secret)


@contextmanager
def writer_process(limits: StreamLimits, shape: CacheShape) -> Iterator[Writer]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_write, args=(there, limits, shape))
    process.start()
    there.close()
    try:
        yield Writer(here)
    finally:
        here.close()
        process.join()


def _write(pipe: Connection, limits: StreamLimits, shape: CacheShape) -> None:
    cache = KvCache(shape)
    cache.fill()
    layout = cache.layout
    nixl, bare_nixl = NixlTransport(layout), BareNixl(layout)
    server = BlockServer(layout, RULE, limits, "127.0.0.1", "127.0.0.1")
    bare_server = BareServer(limits.frame())
    offers = {"nixl": nixl.offer(), "grpc": server.address.encode()}
    pipe.send(Offers(Endpoint(offers, layout), bare_nixl.metadata, bare_server.address))
    try:
        _serve(pipe, nixl, bare_nixl)
    finally:
        for closing in (server, bare_server, nixl, bare_nixl):
            closing.close()


def _serve(pipe: Connection, nixl: NixlTransport, bare_nixl: BareNixl) -> None:
    peak = MemoryPeak()
    while True:
        if not pipe.poll(_PROGRESS_EVERY_S):
            nixl.progress()
            bare_nixl.progress()
            continue
        try:
            word = pipe.recv()
        except EOFError:  # the reader is done
            return
        if word == "begin peak":
            peak = MemoryPeak()
        pipe.send(peak.above())


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
