"""What moving KV blocks between two processes costs, over each transport and over the same wire with nothing around it.

    python -m tests.benchmarks.kv_transfer [--json] [--frame-kib N] [--in-flight-mib N] [--rounds N] [--cuda]

Block shapes of the demo model, or with --cuda of Llama 3.1 8B in one GPU's memory; block ids in no order. All ways of a
size take turns, so that other load on the machine meets them alike; figures are medians. GB/s are 10^9 bytes a second.
Setting up a read (descriptors, ticket, request) is part of it, connecting is not. The memory figures are peaks above
what the processes held before the first gRPC read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.config_transfer import KvTransferConfig
from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_server import BlockServer
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.transport import BlockRead
from tests.benchmarks.bare_transfers import BareClient, BareNixl
from tests.benchmarks.block_writer import RULE, MemoryPeak, Writer, ticket_for, writer_process
from tests.benchmarks.kv_caches import BLOCK_TOKENS, CacheShape, KvCache, demo_shape, llama_shape

MIB = 1 << 20
SIZES_MIB = (1, 16, 64, 256)
PROMPTS = (300, 12_000)
_MOST_BYTES_A_WAY = 1024 * MIB

Way = Callable[[BlockRead], Awaitable[None]]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Readers:
    """The ways to fetch some blocks, by the name under which they are reported."""

    cache: KvCache
    ways: dict[str, Way]
    grpc: Way


async def measure(writer: Writer, limits: StreamLimits, rounds: int, shape: CacheShape) -> dict[str, object]:
    cache = KvCache(shape)
    cache.wipe()  # every page is there before memory is counted
    layout, offers = cache.layout, writer.offers
    server = BlockServer(layout, RULE, limits, "127.0.0.1", "127.0.0.1")
    transport = GrpcTransport(layout, limits, server)
    nixl, bare_nixl = NixlTransport(layout), BareNixl(layout)
    bare_grpc = BareClient(offers.bare_grpc, limits.frame())
    grpc_peer, nixl_peer = transport.connect(offers.endpoint), nixl.connect(offers.endpoint)
    bare_peer = bare_nixl.connect(offers.bare_nixl)

    async def read_bare_nixl(read: BlockRead) -> None:
        bare_nixl.read(bare_peer, offers.endpoint.layout, read.source, read.target)

    ways: dict[str, Way] = {
        "nixl": lambda read: nixl.read(nixl_peer, read),
        "nixl_raw": read_bare_nixl,
        "grpc": lambda read: transport.read(grpc_peer, read),
        "grpc_raw": lambda read: bare_grpc.receive(len(read.source) * shape.block_bytes),
    }
    readers = Readers(cache, ways, ways["grpc"])
    await transport.probe(grpc_peer)
    memory = await _memory(writer, readers, limits)
    mib = {str(size): await _compare(readers, max(1, size * MIB // shape.block_bytes), rounds) for size in SIZES_MIB}
    prompts = {str(tokens): await _compare(readers, -(-tokens // BLOCK_TOKENS), rounds) for tokens in PROMPTS}
    transport.disconnect(grpc_peer)
    nixl.disconnect(nixl_peer)
    await bare_grpc.close()
    for closing in (transport, nixl, bare_nixl):
        closing.close()
    return {"mib": mib, "prompt_tokens": prompts, "memory_mib": memory}


async def _compare(readers: Readers, blocks: int, rounds: int) -> Figures:
    """Each way in turn, as many times as fit into a fixed number of bytes."""
    size = blocks * readers.cache.shape.block_bytes
    read = _some_read(blocks, readers.cache.shape.blocks)
    took: dict[str, list[float]] = {name: [] for name in readers.ways}
    for name, way in readers.ways.items():
        await _warmed(readers.cache, name, way, read)
    for _ in range(min(rounds, max(5, _MOST_BYTES_A_WAY // size))):
        for name, way in readers.ways.items():
            begin = time.perf_counter()
            await way(read)
            took[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(seconds) for name, seconds in took.items()}
    rates = {f"{name}_gbps": round(size / s / 1e9, 3) for name, s in median.items()}
    return rates | {f"{name}_ms": round(1000 * s, 3) for name, s in median.items()} | {"blocks": blocks}


async def _warmed(cache: KvCache, name: str, way: Way, read: BlockRead) -> None:
    """Also proves that the way brings the bytes; the bare gRPC stream has none to bring."""
    cache.wipe()
    await way(read)
    if name != "grpc_raw":
        assert cache.holds(read.source, read.target), f"{name}: wrong bytes"


async def _memory(writer: Writer, readers: Readers, limits: StreamLimits) -> Figures:
    """The highest of one read of all blocks and of as many at once as are allowed."""
    parallel, most = limits.streams, readers.cache.shape.blocks
    writer.begin_peak()
    peak = MemoryPeak()
    await readers.grpc(_some_read(most, most))
    await asyncio.gather(*(readers.grpc(_some_read(most // parallel, most, seed)) for seed in range(parallel)))
    return {
        "reader": round(peak.above(), 1),
        "writer": round(writer.peak_mib(), 1),
        "limit": 2 * limits.in_flight_bytes / MIB,
    }


def _some_read(blocks: int, most: int, seed: int = 0) -> BlockRead:
    rng = random.Random(seed)
    source, target = tuple(rng.sample(range(most), blocks)), tuple(rng.sample(range(most), blocks))
    return BlockRead(ticket_for(source), source, target)


def main() -> None:
    config = KvTransferConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--frame-kib", type=int, default=config.frame_kib)
    parser.add_argument("--in-flight-mib", type=int, default=config.in_flight_mib)
    parser.add_argument("--rounds", type=int, default=31, help="at most, of each size")
    parser.add_argument(
        "--cuda", action="store_true", help="blocks of Llama 3.1 8B on a GPU instead; not run on one yet"
    )
    options = parser.parse_args()
    shape = llama_shape() if options.cuda else demo_shape()
    limits = StreamLimits(options.frame_kib << 10, options.in_flight_mib << 20)
    with writer_process(limits, shape) as writer:
        figures = asyncio.run(measure(writer, limits, options.rounds, shape))
    print(json.dumps(figures, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
