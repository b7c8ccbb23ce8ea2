"""A thousand pulls with random faults: no wrong byte is ever taken for a good one, each ends in time, nothing is left.

The product's own lease book, servers, transports and mover, in processes of their own, without an engine.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from cluster.config_transfer import KvTransferConfig
from kv_transfer.ladder import LadderRules
from tests.kv_transfer.byte_reader import MOST_CONNECTIONS
from tests.kv_transfer.byte_writer import ByteWriter, WriterState
from tests.kv_transfer.soak import OUTCOMES, TRANSFER, Soak, longest_pull_s

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PULLS = 1000
WARM_UP = 150
_BUSY_MACHINE_S = 4.0  # how much longer anything may take where others compute, too; a stopped reader is in it
_MOST_GROWTH = 48 << 20
_MOST_WRITER_THREADS = 48  # those of its two servers and of gRPC
_MOST_FILES = 4  # gRPC and UCX keep some of their own


@pytest.fixture
def seed(record_property: object) -> int:
    return random.randrange(1 << 32)


@pytest.fixture
def soak(seed: int) -> Iterator[Soak]:
    running = Soak(seed)
    yield running
    running.close()


def test_a_thousand_pulls_with_random_faults_never_give_a_wrong_byte_and_leave_nothing(soak: Soak, seed: int) -> None:
    print(f"seed {seed}")  # shown when the test fails
    soak.run(WARM_UP)
    warm = soak.reader.state().rss
    soak.run(PULLS)
    _look_at_the_ends(soak)
    writers = [_settled(source.writer) for source in soak.sources]
    reader = soak.reader.state()
    print(writers, reader)
    remains = soak.reader.close()
    print(remains)
    assert (reader.pulling, reader.foreign_writes) == (0, 0)
    for writer in writers:
        assert (writer.stats.leases, writer.stats.pinned_blocks, writer.stats.pending_releases) == (0, 0, 0)
        assert (writer.free, writer.streams) == (writer.num_blocks, 0)
        assert writer.threads < _MOST_WRITER_THREADS
    assert reader.rss - warm < _MOST_GROWTH
    # Those that nobody used of late had to go, most of them to workers that are dead; one in use cannot.
    assert reader.connections <= MOST_CONNECTIONS + 1
    assert reader.nixl_peers <= reader.connections
    assert (remains.threads, remains.sockets) == ([], [])
    assert remains.files <= _MOST_FILES


def _look_at_the_ends(soak: Soak) -> None:
    ends = soak.ends.values()
    told = Counter((end.transport, end.outcome) for end in ends)
    slowest = max(ends, key=lambda end: end.seconds)
    done = sum((source.front.done + source.grpc_front.done for source in soak.sources), Counter[str]())
    print(f"{dict(told)}\n{dict(soak.lives)}\n{dict(done)}\nslowest: {slowest}")
    assert [end for end in ends if end.wrong_blocks] == []
    assert {end.outcome for end in ends} <= OUTCOMES
    ways = {("nixl", "landed"), ("grpc", "landed"), ("grpc", "failed"), ("none", "stale"), ("none", "cancelled")}
    assert ways <= set(told), "the faults are too tame"
    longest_s = longest_pull_s(LadderRules.of(KvTransferConfig.model_validate(TRANSFER))) + _BUSY_MACHINE_S
    assert slowest.seconds < longest_s


def _settled(writer: ByteWriter) -> WriterState:
    """Once the leases that nobody will read have ended."""
    end = time.monotonic() + 20
    while (state := writer.state()).free < state.num_blocks or state.streams:
        assert time.monotonic() < end, f"{writer.spec.worker_id}: {state}"
        time.sleep(0.02)
    return state
