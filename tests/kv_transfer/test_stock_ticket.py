"""Tickets of vLLM's own connector: what was sealed comes back, and only its own reader may use it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import LeaseLost, TicketRefused
from kv_transfer.stock_ticket import StockTicket, check_reader, open_stock, seal_stock
from kv_transfer.ticket import Ticket, prompt_digest, seal, unseal
from protos.baton.v1 import kv_pb2 as pb

SECRET = b"a secret of sixteen bytes or more"
PROMPT = list(range(100, 170))
NOW_MS = 1_700_000_000_000
TICKET = StockTicket(
    attempt_id="attempt",
    worker_id="prefill-0",
    epoch=2**63 + 5,
    num_tokens=len(PROMPT),
    prompt_digest=prompt_digest(PROMPT),
    fingerprint=b"f" * 32,
    expires_unix_ms=NOW_MS + 30_000,
    params={"do_remote_prefill": True, "remote_block_ids": [[5, 9, 2], [1]], "remote_port": 5600, "tp_size": 2},
)


def test_a_sealed_ticket_comes_back_whole_and_has_no_lease() -> None:
    sealed = seal_stock(TICKET, SECRET)
    assert open_stock(sealed, SECRET) == TICKET
    assert pb.Ticket.FromString(sealed).lease_id == ""


def test_another_secret_is_refused() -> None:
    with pytest.raises(TicketRefused, match="same ticket secret"):
        open_stock(seal_stock(TICKET, b"another secret of enough bytes"), SECRET)


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    sealed = bytearray(seal_stock(TICKET, SECRET))
    where = data.draw(st.integers(0, len(sealed) - 1))
    sealed[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TicketRefused):
        open_stock(bytes(sealed), SECRET)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(TicketRefused):
        open_stock(data, SECRET)


def test_neither_connector_takes_the_other_ones_ticket() -> None:
    ours = Ticket("a", "lease", "prefill-0", 1, 70, ((5, 9, 2),), b"f", "127.0.0.1:1", prompt_digest(PROMPT))
    with pytest.raises(TicketRefused, match="not one of connector vllm-nixl"):
        open_stock(seal(ours, SECRET), SECRET)
    with pytest.raises(TicketRefused, match="lacks its lease"):
        unseal(seal_stock(TICKET, SECRET), SECRET, 32)


def test_the_reader_for_whom_it_was_made_may_use_it_until_it_expires() -> None:
    check_reader(TICKET, PROMPT, b"f" * 32, NOW_MS)
    check_reader(TICKET, PROMPT, b"f" * 32, TICKET.expires_unix_ms - 1)
    with pytest.raises(LeaseLost, match=r"expired 1\.5 s ago"):
        check_reader(TICKET, PROMPT, b"f" * 32, TICKET.expires_unix_ms + 1500)


@pytest.mark.parametrize("prompt", [[*PROMPT, 1], PROMPT[:-1], [0, *PROMPT[1:]], []])
def test_it_fits_its_own_prompt_only(prompt: list[int]) -> None:
    with pytest.raises(TicketRefused, match="another prompt"):
        check_reader(TICKET, prompt, b"f" * 32, NOW_MS)


def test_blocks_packed_for_another_processor_are_refused() -> None:
    with pytest.raises(TicketRefused, match="worker prefill-0 packs its KV blocks for another processor"):
        check_reader(replace(TICKET, fingerprint=b"g" * 32), PROMPT, b"f" * 32, NOW_MS)
