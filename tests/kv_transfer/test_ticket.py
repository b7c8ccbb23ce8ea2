"""Tickets: what was sealed comes back, and nothing else is accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TicketRefused
from kv_transfer.ticket import Ticket, check_blocks, check_prompt, prompt_digest, seal, unseal
from protos.baton.v1 import kv_pb2 as pb

SECRET = b"a secret of sixteen bytes or more"
PROMPT = list(range(100, 170))
TICKET = Ticket(
    attempt_id="attempt",
    lease_id="lease",
    worker_id="prefill-0",
    epoch=2**63 + 5,
    num_tokens=70,
    groups=((5, 9, 2),),
    fingerprint=b"f" * 32,
    source="127.0.0.1:1234",
    prompt_digest=prompt_digest(PROMPT),
    expires_unix_ms=1_700_000_000_000,
)


def test_a_sealed_ticket_comes_back_whole() -> None:
    assert unseal(seal(TICKET, SECRET), SECRET, block_size=32) == TICKET


def test_another_secret_is_refused() -> None:
    with pytest.raises(TicketRefused, match="same ticket secret"):
        unseal(seal(TICKET, b"another secret of enough bytes"), SECRET, 32)


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    sealed = bytearray(seal(TICKET, SECRET))
    where = data.draw(st.integers(0, len(sealed) - 1))
    sealed[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TicketRefused):
        unseal(bytes(sealed), SECRET, 32)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(TicketRefused):
        unseal(data, SECRET, 32)


def test_a_huge_ticket_is_refused_before_it_is_read() -> None:
    with pytest.raises(TicketRefused, match="at most"):
        unseal(b"\0" * (2 << 20), SECRET, 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": ((5, 9),)}, "2 blocks for 70 tokens"),
        ({"groups": ((5, 9, 9),)}, "a block twice"),
        ({"groups": ((5, 9, 2), (1, 3, 4))}, "2 KV cache groups"),
        ({"num_tokens": 0}, "lacks its lease"),
        ({"source": ""}, "lacks its lease"),
    ],
)
def test_a_ticket_that_contradicts_itself_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(TicketRefused, match=reason):
        unseal(seal(replace(TICKET, **change), SECRET), SECRET, 32)  # type: ignore[arg-type]


def test_another_version_is_refused_with_both_versions() -> None:
    wire = pb.Ticket.FromString(seal(TICKET, SECRET))
    wire.version = 9
    with pytest.raises(TicketRefused, match="version 9, this engine reads 1"):
        unseal(wire.SerializeToString(deterministic=True), SECRET, 32)


def test_a_ticket_fits_its_own_prompt_and_its_continuations_only() -> None:
    check_prompt(TICKET, PROMPT)
    check_prompt(TICKET, [*PROMPT, 1, 2, 3])
    for other in ([*PROMPT[:-1], 0], [0, *PROMPT]):
        with pytest.raises(TicketRefused, match="another prompt"):
            check_prompt(TICKET, other)
    with pytest.raises(TicketRefused, match="another prompt"):
        check_prompt(TICKET, PROMPT, context="lora-a")
    with pytest.raises(TicketRefused, match="70 tokens, the prompt has 69"):
        check_prompt(TICKET, PROMPT[:-1])


def test_blocks_that_the_writer_does_not_have_are_refused() -> None:
    check_blocks(TICKET, 10)
    with pytest.raises(TicketRefused, match="block 9"):
        check_blocks(TICKET, 9)
