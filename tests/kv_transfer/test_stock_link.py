"""The owner's side of vLLM's own connector: tickets in and out, and counts of what can be seen from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from cluster.engine import EngineLoad, EngineRequest, Leg, PromptOrigin, Sampling, TransferCount
from cluster.kv_link import ConnectorDialect, KvLink, KvStats
from kv_transfer.stock_link import StockIdentity, StockLink
from kv_transfer.stock_settings import SideChannel

PROMPT = list(range(100, 170))
BUSY, IDLE = EngineLoad(0, 0, 0.1), EngineLoad()
ANSWER: dict[str, object] = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[3, 4, 5]]}
PREFILL = StockIdentity("prefill-0", 7, 32, 10.0, b"a secret of sixteen bytes", b"f" * 32)
DECODE = replace(PREFILL, worker_id="decode-0")


class Engines:
    """A writer's and a reader's link on one clock that the test moves."""

    def __init__(self, reader: StockIdentity = DECODE) -> None:
        self.time = 1000.0
        self.writer = self._link(PREFILL)
        self.reader = self._link(reader)

    def _link(self, identity: StockIdentity) -> StockLink:
        return StockLink(identity, SideChannel("127.0.0.1"), lambda: self.time, lambda: self.time)

    def prefill(self, attempt_id: str = "p", answer: Mapping[str, object] = ANSWER) -> bytes:
        return self.writer.ticket(request(Leg.PREFILL, attempt_id), answer)

    def ask(self, ticket: bytes, attempt_id: str = "d", **fields: Any) -> Mapping[str, object] | None:
        return self.reader.ask(request(Leg.DECODE, attempt_id, ticket=ticket, **fields))

    def began(self, pulled: int, cached: int = 0, attempt_id: str = "d") -> None:
        self.reader.began(request(Leg.DECODE, attempt_id), PromptOrigin(len(PROMPT), cached, pulled))


def request(leg: Leg, attempt_id: str = "a", **fields: Any) -> EngineRequest:
    return EngineRequest(**{"prompt_token_ids": PROMPT} | fields, attempt_id=attempt_id, leg=leg, sampling=Sampling(1))


@pytest.fixture
def engines() -> Iterator[Engines]:
    made = Engines()
    yield made
    for link in (made.writer, made.reader):
        link._channel.close()


async def counted(link: StockLink) -> dict[tuple[str, str], TransferCount]:
    return {(t.transport, t.outcome): t for t in (await link.stats()).transfers}


async def test_it_is_a_link_and_a_dialect_and_has_no_source_of_its_own(engines: Engines) -> None:
    link: KvLink = engines.writer
    dialect: ConnectorDialect = engines.writer
    assert await link.address() == ""
    assert await link.fingerprint() == b"f" * 32
    assert await link.stats() == KvStats()
    assert dialect.ask(request(Leg.WHOLE)) is None
    await link.release("anything")
    await link.close()
    await link.close()


async def test_what_prefill_gave_reaches_decode_unchanged(engines: Engines) -> None:
    asked = engines.writer.ask(request(Leg.PREFILL))
    assert asked is not None
    assert (asked["do_remote_decode"], asked["do_remote_prefill"]) == (True, False)
    assert engines.ask(engines.prefill()) == ANSWER


@pytest.mark.parametrize(
    "answer", [{"do_remote_prefill": False}, {"remote_block_ids": None}, {"remote_block_ids": [[], []]}]
)
async def test_without_blocks_there_is_no_ticket(engines: Engines, answer: dict[str, object]) -> None:
    assert engines.prefill(answer=ANSWER | answer) == b""
    assert (await engines.writer.stats()).leases_offered == 0


async def test_pulled_blocks_and_bytes_are_counted_where_they_landed(engines: Engines) -> None:
    engines.ask(engines.prefill())
    engines.reader.stepped(BUSY, {"bytes_transferred": [4096, 100], "num_failed_transfers": []})
    engines.began(pulled=38, cached=32)
    assert await counted(engines.reader) == {("nixl", "landed"): TransferCount("nixl", "landed", 1, 2, 4196)}
    assert (await engines.reader.stats()).recomputed_requests == 0


async def test_a_read_that_failed_is_a_prompt_computed_again(engines: Engines) -> None:
    engines.ask(engines.prefill())
    engines.began(pulled=0)
    assert (await counted(engines.reader))["nixl", "failed"].count == 1
    assert (await engines.reader.stats()).recomputed_requests == 1


async def test_an_attempt_that_ended_before_its_prompt_began_counts_nowhere(engines: Engines) -> None:
    engines.ask(engines.prefill())
    engines.reader.ended("d")
    engines.began(pulled=0)
    assert await engines.reader.stats() == KvStats()


@pytest.mark.parametrize(
    ("damage", "outcome"),
    [
        ({"ticket": b"\xff" * 40}, "refused"),
        ({"ticket": b""}, "refused"),
        ({"prompt_token_ids": [1, 2, 3]}, "refused"),
    ],
)
async def test_a_bad_ticket_is_refused_counted_once_and_the_prompt_computed(
    engines: Engines, damage: dict[str, Any], outcome: str
) -> None:
    assert engines.ask(**{"ticket": engines.prefill()} | damage) is None
    engines.began(pulled=0)
    assert await counted(engines.reader) == {("none", outcome): TransferCount("none", outcome, 1, 0, 0)}
    assert (await engines.reader.stats()).recomputed_requests == 1


async def test_a_ticket_too_old_for_its_lease_is_stale_and_its_blocks_are_not_read(engines: Engines) -> None:
    ticket = engines.prefill()
    engines.time += PREFILL.lease_s * 0.74
    assert engines.ask(ticket, "in time") is not None
    engines.time += PREFILL.lease_s * 0.02
    assert engines.ask(ticket) is None
    assert (await counted(engines.reader))["none", "stale"].count == 1


async def test_a_ticket_of_another_kind_of_processor_is_refused() -> None:
    engines = Engines(replace(DECODE, fingerprint=b"g" * 32))
    assert engines.ask(engines.prefill()) is None
    assert (await counted(engines.reader))["none", "refused"].count == 1
    for link in (engines.writer, engines.reader):
        await link.close()


async def test_blocks_wait_until_the_engine_is_empty(engines: Engines) -> None:
    engines.prefill("p1")
    engines.prefill("p2")
    engines.writer.stepped(BUSY, {})
    assert (await engines.writer.stats()).leases == 2
    engines.writer.stepped(IDLE, {})
    stats = await engines.writer.stats()
    assert (stats.leases, stats.leases_offered, stats.leases_released, stats.leases_expired) == (0, 2, 2, 0)


async def test_blocks_that_nobody_read_expire_by_the_clock_and_by_the_connectors_own_count(engines: Engines) -> None:
    engines.prefill("p1")
    engines.time += PREFILL.lease_s / 2
    engines.prefill("p2")
    engines.time += PREFILL.lease_s / 2
    engines.writer.stepped(BUSY, {"num_kv_expired_reqs": [1]})
    stats = await engines.writer.stats()
    assert (stats.leases, stats.leases_released, stats.leases_expired) == (1, 0, 1)


def test_a_reader_that_was_late_is_told_to_the_operator(engines: Engines, caplog: pytest.LogCaptureFixture) -> None:
    engines.writer.stepped(BUSY, {"num_notifications_after_expiry": [1, 1]})
    assert "2 readers were done only after their blocks had been given away" in caplog.text
    assert "raise kv_transfer.lease_s above 10" in caplog.text
