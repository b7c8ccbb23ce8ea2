"""The simulated hand-off: real tickets, leases and gRPC between two engines that have no blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from cluster.clock import RealClock, VirtualClock
from cluster.config_transfer import KvTransferConfig
from cluster.errors import LeaseLost, TicketRefused, TransferFailed
from cluster.kv_link import Handoff
from kv_transfer.simulated_handoff import SimulatedHandoff, SimulatedLink
from protos.baton.v1 import kv_pb2

LINK = SimulatedLink(
    worker_id="prefill-0",
    epoch=1,
    listen_host="127.0.0.1",
    advertise_host="127.0.0.1",
    secret=b"a secret of sixteen bytes or more",
    block_size=32,
    num_blocks=1000,
    transfer=KvTransferConfig(connect_deadline_s=2.0),
    block_s=0.0001,
)


class Pair:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.prefill = SimulatedHandoff(LINK, "m", self.clock)
        self.decode = SimulatedHandoff(replace(LINK, worker_id="decode-0"), "m", RealClock())
        self.freed: list[int] = []
        self.came_back = asyncio.Event()

    def take_back(self, block_ids: Sequence[int]) -> None:
        self.freed += block_ids
        self.came_back.set()

    async def all_back(self) -> list[int]:
        async with asyncio.timeout(5):
            await self.came_back.wait()
        return self.freed


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    ends: tuple[Handoff, ...] = (made.prefill, made.decode)
    for end in ends:
        await end.start(made.take_back)
    yield made
    made.prefill.check_integrity()
    for end in ends:
        await end.close()
        await end.close()


async def test_a_pull_counts_on_both_sides_and_gives_the_blocks_back(pair: Pair) -> None:
    ticket = pair.prefill.offer("attempt", 70, [1, 2, 3])
    assert pair.decode.tokens_in(ticket) == 70
    await pair.decode.pull(ticket, missing_blocks=2)
    assert await pair.all_back() == [1, 2, 3]
    sent, pulled = await pair.prefill.stats(), await pair.decode.stats()
    assert (sent.leases, sent.pinned_blocks, sent.leases_released, sent.blocks_sent) == (0, 0, 1, 2)
    assert [(t.transport, t.outcome, t.count, t.blocks) for t in pulled.transfers] == [("simulated", "landed", 1, 2)]
    assert pulled.transfers[0].bytes == sent.bytes_sent > 0


async def test_a_ticket_that_is_not_needed_gives_the_blocks_back(pair: Pair) -> None:
    await pair.decode.pull(pair.prefill.offer("attempt", 32, [8]), missing_blocks=0)
    assert await pair.all_back() == [8]


async def test_a_released_lease_cannot_be_read(pair: Pair) -> None:
    ticket = pair.prefill.offer("attempt", 32, [8])
    await pair.prefill.release("of nobody")
    assert (await pair.prefill.stats()).leases == 1
    await pair.prefill.release(kv_pb2.Ticket.FromString(ticket).lease_id)
    assert pair.freed == [8]
    with pytest.raises(LeaseLost):
        await pair.decode.pull(ticket, missing_blocks=1)
    assert (await pair.decode.stats()).recomputed_requests == 1


async def test_an_expired_lease_gives_the_blocks_back_without_anyone_asking(pair: Pair) -> None:
    ticket = pair.prefill.offer("attempt", 32, [8])
    await pair.clock.advance(2 * LINK.transfer.lease_s)
    assert pair.freed == [8]
    with pytest.raises(LeaseLost):
        await pair.decode.pull(ticket, missing_blocks=1)


async def test_a_ticket_of_another_secret_is_refused(pair: Pair) -> None:
    other = SimulatedHandoff(replace(LINK, secret=b"another secret of enough bytes"), "m", RealClock())
    with pytest.raises(TicketRefused):
        other.tokens_in(pair.prefill.offer("attempt", 32, [8]))


async def test_an_engine_of_another_model_is_refused(pair: Pair) -> None:
    other = SimulatedHandoff(replace(LINK, worker_id="decode-1"), "other", RealClock())
    await other.start(pair.take_back)
    with pytest.raises(TransferFailed, match="model: reader has other, writer has m"):
        await other.pull(pair.prefill.offer("attempt", 32, [8]), missing_blocks=1)
    await other.close()


async def test_a_cancelled_pull_gives_the_blocks_back(pair: Pair) -> None:
    slow = SimulatedHandoff(replace(LINK, worker_id="decode-2", block_s=60.0), "m", RealClock())
    await slow.start(pair.take_back)
    pulling = asyncio.create_task(slow.pull(pair.prefill.offer("attempt", 32, [8]), missing_blocks=1))
    await asyncio.sleep(0.05)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert await pair.all_back() == [8]
    await slow.close()
