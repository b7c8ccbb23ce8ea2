"""The writing side of the scheduler half: pins the blocks of finished prefills and gives them back when their lease
ends.

All methods run on the engine's own thread, the only one that may touch the block pool; KvSource decides on other
threads, in the lease book.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from kv_transfer.engine_settings import ConnectorSettings
from kv_transfer.lease import Free
from kv_transfer.lease_book import LeaseBook
from kv_transfer.ticket import Ticket, prompt_digest, seal


class Exporter:
    """`pool` is vLLM's block pool."""

    def __init__(self, settings: ConnectorSettings, secret: bytes, book: LeaseBook, pool: Any, block_size: int) -> None:
        self._settings = settings
        self._secret = secret
        self._book = book
        self._pool = pool
        self._block_size = block_size

    def export(self, request: Any, block_ids: list[int], source: str, fingerprint: bytes) -> bytes:
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
        ticket = Ticket(
            attempt_id=request.request_id,
            lease_id=lease_id,
            worker_id=self._settings.worker_id,
            epoch=self._settings.epoch,
            num_tokens=tokens,
            groups=(ids,),
            fingerprint=fingerprint,
            source=source,
            prompt_digest=prompt_digest(request.prompt_token_ids, context_of(request)),
            expires_unix_ms=int((time.time() + self._settings.lease_s) * 1000),
        )
        return seal(ticket, self._secret)

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


def context_of(request: Any) -> str:
    """What the KV of a request's tokens depends on besides the tokens: its LoRA adapter, and what stands for media."""
    adapter = [request.lora_request.lora_name] if request.lora_request is not None else []
    return "|".join([*adapter, *(feature.identifier for feature in request.mm_features or ())])
