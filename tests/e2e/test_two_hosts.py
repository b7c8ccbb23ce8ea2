"""Two hosts with a network between them: the ladder across a real boundary, while the way for NIXL is cut and mended.

NIXL has a cable of its own. There is no remote memory access on it, so NIXL goes only where UCX may emulate that, which
an operator must allow; as shipped, such hosts use gRPC. Byte for byte without an engine, token for token with two.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from kv_transfer.ladder import LadderRules
from tests.kv_transfer.byte_reader import ByteReader, PullEnd, PullOrder, ReaderSpec
from tests.kv_transfer.byte_writer import ByteWriter, WriterSpec
from tests.kv_transfer.engine_process import EngineProcess, Place
from tests.kv_transfer.marked_blocks import SIZE
from tests.kv_transfer.soak import longest_pull_s
from tests.two_hosts import FAST, SLOW, Host, TwoHosts, two_hosts, why_not

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.skipif(bool(why_not()), reason=why_not())]

# It is one machine after all: without these UCX would go through its memory.
APART = {"UCX_TLS": "tcp,self"}
EMULATED = {**APART, "UCX_PROTO_EMULATION_ENABLE": "y"}
OPEN_S, PROBE_S = 0.5, 1.0
LEASE_S = 6.0
# What is not cut must not look so where the machine stands still for a second or two.
TRANSFER: dict[str, Any] = {
    "net_device": FAST,
    "connect_deadline_s": 3.0,
    "probe_s": PROBE_S,
    "circuit_open_s": OPEN_S,
    "circuit_most_s": 2 * OPEN_S,
    "nixl": {"mib_per_s": 64.0, "factor": 2.0, "floor_s": 2.0, "ceiling_s": 2.0},
    "grpc": {"mib_per_s": 64.0, "factor": 2.0, "floor_s": 6.0, "ceiling_s": 6.0},
}
RULES = LadderRules.of(KvTransferConfig.model_validate(TRANSFER))
MANY = 400  # blocks; their bytes at SLOWLY take more than a second
SLOWLY = MANY * SIZE / 2**20 / 1.5  # MiB/s
_SLACK_S = 1.5


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        yield made


@dataclass
class Pair:
    """A writer on the left host, a reader on the right one. `ends` are those of all pulls so far."""

    writer: ByteWriter
    reader: ByteReader
    ends: list[PullEnd] = field(default_factory=list)

    def pull(self, blocks: int = 10) -> PullEnd:
        offered = self.writer.offer(blocks)
        assert offered is not None
        end = self.reader.pull(PullOrder(f"pull-{len(self.ends)}", offered, tuple(range(blocks))))
        assert end.wrong_blocks == 0
        assert end.seconds < longest_pull_s(RULES) + _SLACK_S
        self.ends.append(end)
        return end

    def pull_until_over(self, transport: str, within_s: float = 10.0) -> None:
        """Requests go on coming; sooner or later they take that way again."""
        give_up = time.monotonic() + within_s
        while self.pull().transport != transport:
            assert time.monotonic() < give_up, f"never over {transport} again: {self.ends[-1]}"

    def look_at_the_end(self) -> None:
        """Nothing of all this is left on either host."""
        give_up = time.monotonic() + 2 * LEASE_S
        while (writer := self.writer.state()).free < writer.num_blocks:
            assert time.monotonic() < give_up, writer
        assert (writer.stats.leases, writer.stats.pending_releases, writer.streams) == (0, 0, 0)
        assert self.reader.state().foreign_writes == 0
        remains = self.reader.close()
        assert (remains.threads, remains.sockets) == ([], [])


Start = Callable[[dict[str, str]], Pair]


@pytest.fixture
def start(hosts: TwoHosts) -> Iterator[Start]:
    made: list[Pair] = []

    def pair(environment: dict[str, str]) -> Pair:
        left, right = hosts.left, hosts.right
        spec = WriterSpec("writer", 1, 1, LEASE_S, 2 * MANY, left.address(SLOW), FAST)
        writer = ByteWriter(spec, left.namespace, environment)
        reader_spec = ReaderSpec("reader/1", 2 * MANY, right.address(SLOW), TRANSFER)
        made.append(Pair(writer, ByteReader(reader_spec, right.namespace, environment)))
        writer.wait_until_ready()
        made[-1].reader.wait_until_ready()
        return made[-1]

    yield pair
    for one in made:
        one.reader.process.kill()
        one.writer.process.kill()


def landed_over(end: PullEnd) -> str:
    assert end.outcome == "landed", end
    return end.transport


def test_nixl_lands_over_the_network_where_it_may(start: Start) -> None:
    pair = start(EMULATED)
    assert [landed_over(pair.pull(blocks)) for blocks in (1, 10, MANY)] == ["nixl"] * 3
    pair.look_at_the_end()


@pytest.mark.parametrize("cut", [False, True], ids=["all well", "the way for NIXL cut"])
def test_as_shipped_hosts_without_remote_memory_access_use_grpc(hosts: TwoHosts, start: Start, cut: bool) -> None:
    if cut:
        hosts.lose(hosts.left, FAST)
    pair = start(APART)
    assert [landed_over(pair.pull(blocks)) for blocks in (1, 10, MANY)] == ["grpc"] * 3
    pair.look_at_the_end()


@pytest.mark.parametrize("sender", ["left", "right"], ids=["what the writer sends", "what the reader sends"])
def test_a_way_that_is_cut_before_the_first_contact_costs_one_probe_once(
    hosts: TwoHosts, start: Start, sender: str
) -> None:
    hosts.lose(getattr(hosts, sender), FAST)
    pair = start(EMULATED)
    first, second = pair.pull(), pair.pull()
    assert [landed_over(first), landed_over(second)] == ["grpc", "grpc"]
    assert first.seconds >= PROBE_S * 0.9, "nothing was lost: the cut does not cut"
    assert (first.fallen, second.fallen) == (("nixl",), ()), "the second pull paid again"
    hosts.mend()
    pair.pull_until_over("nixl")
    pair.look_at_the_end()


def test_a_cable_without_carrier_is_as_good_as_cut(hosts: TwoHosts, start: Start) -> None:
    pair = start(EMULATED)
    assert landed_over(pair.pull()) == "nixl"
    hosts.unplug(FAST)
    assert landed_over(pair.pull()) == "grpc"
    second = pair.pull()
    assert (landed_over(second), second.fallen) == ("grpc", ())
    pair.look_at_the_end()


def test_a_read_over_nixl_that_is_cut_half_way_falls_to_grpc_within_its_deadline(hosts: TwoHosts, start: Start) -> None:
    """The way is not mended: UCX aborts a writer that hears that its reader gave up in the middle of an emulated read,
    which is why emulation is off as shipped."""
    pair = start(EMULATED)
    assert landed_over(pair.pull(MANY)) == "nixl"
    hosts.throttle(hosts.left, FAST, SLOWLY)
    with _soon(lambda: hosts.lose(hosts.right, FAST), 0.3):
        cut = pair.pull(MANY)
    assert landed_over(cut) == "grpc"
    nixl_s = RULES.deadline_s("nixl", MANY * SIZE)
    assert nixl_s * 0.9 < cut.seconds < nixl_s + _SLACK_S
    second = pair.pull(MANY)
    assert (landed_over(second), second.fallen) == ("grpc", ())
    pair.look_at_the_end()


def test_a_read_over_grpc_that_is_cut_half_way_goes_on_when_the_way_is_back_in_time(
    hosts: TwoHosts, start: Start
) -> None:
    pair = start(APART)
    assert landed_over(pair.pull(MANY)) == "grpc"
    hosts.throttle(hosts.left, SLOW, SLOWLY)
    with _soon(lambda: hosts.lose(hosts.left, SLOW), 0.3), _soon(hosts.mend, 0.9):
        assert landed_over(pair.pull(MANY)) == "grpc"
    pair.look_at_the_end()


def test_without_any_way_a_pull_fails_in_time_and_nixl_is_used_again_afterwards(hosts: TwoHosts, start: Start) -> None:
    pair = start(EMULATED)
    assert landed_over(pair.pull()) == "nixl"
    offered = pair.writer.offer(10)
    assert offered is not None
    for cable in (FAST, SLOW):
        hosts.lose(hosts.left, cable)
    lost = pair.reader.pull(PullOrder("lost", offered, tuple(range(10))))
    assert lost.outcome == "failed"
    assert lost.seconds < longest_pull_s(RULES) + _SLACK_S
    hosts.mend()
    pair.pull_until_over("nixl")
    pair.look_at_the_end()


@contextmanager
def _soon(act: Callable[[], None], after_s: float) -> Iterator[None]:
    """Does something so many seconds after the block has begun; the block ends after it."""
    timer = threading.Timer(after_s, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@dataclass(frozen=True)
class Engines:
    """Real ones: prefill on the left host, decode on the right one."""

    hosts: TwoHosts
    prefill: EngineProcess
    decode: EngineProcess

    def generate(self, ids: list[int], tokens: int) -> tuple[list[int], str, list[str]]:
        """The tokens, what brought the prompt's blocks, and what was tried before."""
        first = self.prefill.prefill(ids)
        before = self._pulls()
        rest = self.decode.decode([*ids, *first.tokens], tokens - 1, first.ticket)
        new = [key for key, count in self._pulls().items() if count != before.get(key, 0)]
        landed = [transport for transport, outcome in new if outcome == "landed"]
        assert rest.external == (len(ids) if landed else 0)
        fallen = [transport for transport, outcome in new if outcome == "failed"]
        return first.tokens + rest.tokens, landed[0] if landed else "none", fallen

    def _pulls(self) -> dict[tuple[str, str], int]:
        return {(t.transport, t.outcome): t.count for t in self.decode.stats().transfers}


@pytest.fixture(scope="module")
def engines(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """The way for NIXL is cut before either engine has heard of the other."""
    folder = tmp_path_factory.mktemp("engines")
    with two_hosts() as hosts:
        hosts.lose(hosts.left, FAST)
        prefill = EngineProcess(demo_model, Role.PREFILL, "prefill-0", folder, _place(hosts.left), **TRANSFER)
        decode = EngineProcess(demo_model, Role.DECODE, "decode-0", folder, _place(hosts.right), **TRANSFER)
        try:
            prefill.wait_until_ready()
            decode.wait_until_ready()
            yield Engines(hosts, prefill, decode)
        finally:
            prefill.kill()
            decode.kill()


def test_two_engines_on_two_hosts_say_what_one_says_over_grpc_and_then_over_nixl(engines: Engines) -> None:
    draw = random.Random(5)
    told: list[tuple[list[int], list[int]]] = []
    ways: list[str] = []

    def ask(length: int) -> list[str]:
        ids = [draw.randrange(4, 4096) for _ in range(length)]
        tokens, way, fallen = engines.generate(ids, 10)
        told.append((ids, tokens))
        ways.append(way)
        return fallen

    assert [ask(300), ask(300)] == [["nixl"], []], "only the first request pays for the cut way"
    assert ways == ["grpc", "grpc"]
    engines.hosts.mend()
    give_up = time.monotonic() + 20
    while ways[-1] != "nixl":
        assert time.monotonic() < give_up, ways
        ask(40)
    for length in (33, 300, 3000):
        ask(length)
    assert ways[-3:] == ["nixl"] * 3
    for ids, tokens in told:
        assert tokens == engines.decode.alone(ids, 10)
    for engine in (engines.prefill, engines.decode):
        stats = engine.stats()
        assert (stats.leases, stats.pinned_blocks, stats.pending_releases) == (0, 0, 0)


def test_each_port_of_an_engine_is_bound_to_the_interface_meant_for_it(engines: Engines) -> None:
    """Of Baton to that of `listen_host`, of NIXL to `net_device`, and what vLLM has of its own to loopback."""
    for host in (engines.hosts.left, engines.hosts.right):
        bound = host.listening()
        assert {host.address(SLOW), host.address(FAST)} <= bound
        assert bound <= {host.address(SLOW), host.address(FAST), "127.0.0.1"}


def _place(host: Host) -> Place:
    return Place(host.address(SLOW), host.namespace, tuple(EMULATED.items()))
