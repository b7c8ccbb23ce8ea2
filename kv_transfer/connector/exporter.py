"""The writing side of the scheduler half: pins the blocks of finished prefills and gives them back when their lease
ends.

All methods run on the engine's own thread, the only one that may touch the block pool; KvSource decides on other
threads, in the lease book.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from kv_transfer.lease import Free
from kv_transfer.lease_book import LeaseBook
from kv_transfer.ticket_writer import Prompt, TicketWriter


class Exporter:
    """`pool` is vLLM's block pool. `on_unpin` hears of every lease whose blocks were given back."""

    def __init__(self, book: LeaseBook, pool: Any, block_size: int, on_unpin: Callable[[str], None]) -> None:
        self._book = book
        self._pool = pool
        self._block_size = block_size
        self._on_unpin = on_unpin

    def export(self, request: Any, block_ids: list[int], writer: TicketWriter) -> bytes:
        """Pins the blocks of the request's prompt past its end and returns the ticket; empty when they do not hold it
        all."""
        tokens = request.num_prompt_tokens
        ids = tuple(block_ids[: -(-tokens // self._block_size)])
        whole = request.num_computed_tokens >= tokens and len(ids) * self._block_size >= tokens
        if not whole or request.prompt_token_ids is None:
            return b""
        lease_id = uuid.uuid4().hex
        self._pool.touch([self._pool.blocks[i] for i in ids])
        self._book.offer(lease_id, ids)
        return writer.write(request.request_id, lease_id, prompt_of(request), tokens, ids)

    def take_back(self) -> None:
        """Unpins the blocks of leases that have ended."""
        self._book.take_frees(self._unpin)

    def check_integrity(self) -> None:
        """AssertionError: a leased block is not pinned in the pool, or the leases contradict themselves."""
        self._book.check_integrity()
        for block_id, leases in self._book.pins().items():
            held = self._pool.blocks[block_id].ref_cnt
            assert held >= leases, f"block {block_id} has {leases} leases, but is held {held} times"

    def _unpin(self, free: Free) -> None:
        # The tail first: a prefix is worth more to the cache than what follows it.
        self._pool.free_blocks([self._pool.blocks[i] for i in reversed(free.block_ids)])
        self._on_unpin(free.lease_id)


def prompt_of(request: Any) -> Prompt:
    """The request must have its prompt as token ids."""
    return Prompt(request.prompt_token_ids, context_of(request))


def context_of(request: Any) -> str:
    """What the KV of a request's tokens depends on besides the tokens: its LoRA adapter, and what stands for media."""
    adapter = [request.lora_request.lora_name] if request.lora_request is not None else []
    return "|".join([*adapter, *(feature.identifier for feature in request.mm_features or ())])
