"""Writes the tickets of one engine start: everything in a ticket that does not depend on the prompt, kept once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kv_transfer.ticket import Ticket, prompt_digest, seal


@dataclass(frozen=True, slots=True)
class Prompt:
    """What KV blocks depend on. `context`: whatever it is besides the tokens, such as a LoRA adapter."""

    token_ids: Sequence[int]
    context: str = ""

    def digest(self, num_tokens: int) -> bytes:
        """Of the first so many tokens."""
        return prompt_digest(self.token_ids[:num_tokens], self.context)


@dataclass(frozen=True, slots=True)
class TicketWriter:
    """`source`: host:port of this engine's KvSource. `lease_s` is told for logs only."""

    worker_id: str
    epoch: int
    source: str
    fingerprint: bytes
    secret: bytes
    lease_s: float

    def write(
        self, attempt_id: str, lease_id: str, prompt: Prompt, num_tokens: int, block_ids: tuple[int, ...]
    ) -> bytes:
        """A sealed ticket for the first `num_tokens` tokens of the prompt, whose KV is in these blocks."""
        ticket = Ticket(
            attempt_id=attempt_id,
            lease_id=lease_id,
            worker_id=self.worker_id,
            epoch=self.epoch,
            num_tokens=num_tokens,
            groups=(block_ids,),
            fingerprint=self.fingerprint,
            source=self.source,
            prompt_digest=prompt.digest(num_tokens),
            expires_unix_ms=int((time.time() + self.lease_s) * 1000),
        )
        return seal(ticket, self.secret)
