"""Every TCP port of a running engine, in the face of whoever connects and does not speak its language.

Ours (KvSource, KvBlocks), those of UCX below NIXL and whatever else the engine's process opens: found by asking the
kernel, not by asking us.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.engine import Role
from kv_transfer.ticket import seal, unseal
from tests.kv_transfer.engine_process import BLOCK_SIZE, SECRET, EngineProcess
from tests.kv_transfer.faulty_front import FaultyFront

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

OUTPUT = 4
_CONNECT_S = 2.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Poison = Callable[[socket.socket], None]


def garbage(connection: socket.socket) -> None:
    connection.sendall(random.Random(1).randbytes(1 << 16))


def zeros(connection: socket.socket) -> None:
    connection.sendall(bytes(1 << 16))


def http2_nonsense(connection: socket.socket) -> None:
    """A good preface and settings, then frames of strange types on streams that nobody opened, then one of 16 MiB."""
    settings = struct.pack(">IBI", 0, 4, 0)[1:]
    strange = b"".join(struct.pack(">IBBI", 8, kind, 0xFF, 77)[1:] + b"whatever" for kind in (0, 1, 3, 9, 200))
    endless = struct.pack(">IBBI", 0xFFFFFF, 0, 0, 1)[1:]
    connection.sendall(_PREFACE + settings + strange + endless + bytes(4096))


def half_a_preface(connection: socket.socket) -> None:
    connection.sendall(_PREFACE[:9])


def silence(connection: socket.socket) -> None:
    """Connects and says nothing."""


def reset(connection: socket.socket) -> None:
    """Says a little, and is gone without goodbye."""
    connection.sendall(b"\x00\x00\x00")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


POISONS = (garbage, zeros, http2_nonsense, half_a_preface, silence, reset)


@pytest.fixture(scope="module")
def engines(
    demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EngineProcess, EngineProcess]]:
    folder = tmp_path_factory.mktemp("engines")
    made = [EngineProcess(demo_model, role, f"{role.value}-0", folder) for role in (Role.PREFILL, Role.DECODE)]
    try:
        for engine in made:
            engine.wait_until_ready()
        yield made[0], made[1]
    finally:
        for engine in made:
            engine.kill()


@pytest.fixture
def front() -> Iterator[FaultyFront]:
    """Readers that come through it find no way over NIXL."""
    made = FaultyFront()
    made.spoil_nixl = True
    yield made
    made.close()


def listening(engine: EngineProcess) -> list[tuple[str, int]]:
    """Of the engine's process and of all that it started."""
    assert engine.process.pid is not None
    process = psutil.Process(engine.process.pid)
    connections = [c for p in (process, *process.children(recursive=True)) for c in p.net_connections("tcp")]
    return [(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]


def test_every_port_is_bound_to_the_configured_interface_only(engines: tuple[EngineProcess, EngineProcess]) -> None:
    for engine in engines:
        hosts = {host.removeprefix("::ffff:") for host, _ in listening(engine)}
        assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_an_engine_serves_on_whatever_comes_to_its_ports(
    engines: tuple[EngineProcess, EngineProcess], front: FaultyFront, poison: Poison
) -> None:
    prefill, decode = engines
    ids = [random.Random(poison.__name__).randrange(4, 4096) for _ in range(8 * BLOCK_SIZE + 3)]
    with ExitStack() as held:
        warm, first = (
            prefill.prefill(ids),
            prefill.prefill(ids),
        )  # leases are open: all of the engine's ports are served
        for address in (*listening(prefill), *listening(decode)):
            for _ in range(4):
                _send(poison, address, held)
        _pull_lands(decode, ids, warm.tokens, warm.ticket, "nixl")
        _pull_lands(decode, ids, first.tokens, _through(front, first.ticket), "grpc")
    again = prefill.prefill(ids)
    _pull_lands(decode, ids, again.tokens, again.ticket, "nixl")
    assert decode.alone(ids, OUTPUT)[:1] == again.tokens
    for engine in engines:
        stats = engine.stats()
        assert (stats.leases, stats.pinned_blocks, stats.pending_releases) == (0, 0, 0)


def test_the_poison_reaches_every_port_of_ours(engines: tuple[EngineProcess, EngineProcess]) -> None:
    """Or the test above would prove nothing: KvSource, KvBlocks and NIXL listen in each engine."""
    for engine in engines:
        assert len(listening(engine)) >= 3


def _send(poison: Poison, address: tuple[str, int], held: ExitStack) -> None:
    """The connection stays open, as far as we are concerned, until the pulls are over."""
    connection = held.enter_context(closing(socket.create_connection(address, _CONNECT_S)))
    with suppress(OSError):  # it was thrown out before it had said everything
        poison(connection)


def _pull_lands(decode: EngineProcess, ids: list[int], first: list[int], ticket: bytes, transport: str) -> None:
    before = _landed(decode, transport)
    apart = decode.decode([*ids, *first], OUTPUT - 1, ticket)
    assert apart.external == len(ids)
    assert _landed(decode, transport) == before + 1
    assert first + apart.tokens == decode.alone(ids, OUTPUT)


def _landed(decode: EngineProcess, transport: str) -> int:
    return sum(t.count for t in decode.stats().transfers if (t.transport, t.outcome) == (transport, "landed"))


def _through(front: FaultyFront, sealed: bytes) -> bytes:
    ticket = unseal(sealed, SECRET, BLOCK_SIZE)
    front.aim(ticket.source)
    return seal(replace(ticket, source=front.address), SECRET)
