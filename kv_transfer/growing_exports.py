"""Prompts whose blocks are handed over while the rest of them is still being computed: what a reader hears who follows.

The engine's own thread opens, extends and closes; threads of KvSource follow. Which blocks are whole, and when they are
pinned, is the caller's business.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cluster.errors import LeaseLost
from kv_transfer.lease_book import LeaseBook
from kv_transfer.ticket_writer import Prompt, TicketWriter

_WAIT_S = 0.1
# So many of KvSource's threads may wait for a prompt to grow; further followers are answered at once.
_MOST_WAITING = 2


@dataclass(frozen=True, slots=True)
class Followed:
    """`ticket`: sealed, over all blocks that are whole by now; empty where the reader knows of them all. `closed`: no
    more will come. `held_s`: for how long the reader has the lease from now, seconds."""

    ticket: bytes
    closed: bool
    held_s: float


class GrowingExports:
    """Each growing lease is named by the attempt whose prompt it holds."""

    def __init__(self, book: LeaseBook, writer: TicketWriter, block_size: int) -> None:
        self._book = book
        self._writer = writer
        self._block_size = block_size
        self._prompts: dict[str, Prompt] = {}
        self._seats = threading.Semaphore(_MOST_WAITING)

    def open(self, attempt_id: str, prompt: Prompt, block_ids: tuple[int, ...]) -> None:
        """With the first whole blocks. Raises ValueError for an attempt that had a lease before."""
        if attempt_id in self._prompts:
            raise ValueError(f"attempt {attempt_id} has a growing lease")
        self._prompts[attempt_id] = prompt  # first: a follower waits for the lease
        try:
            self._book.open(attempt_id, block_ids)
        except ValueError:
            del self._prompts[attempt_id]
            raise

    def grow(self, attempt_id: str, block_ids: tuple[int, ...]) -> bool:
        """False: the lease has ended, and these blocks stay the caller's."""
        return self._book.grow(attempt_id, block_ids)

    def close(self, attempt_id: str) -> None:
        self._book.close(attempt_id)

    def forget(self, lease_id: str) -> None:
        """The lease's blocks were given back. Other leases are no error."""
        self._prompts.pop(lease_id, None)

    def follow(self, attempt_id: str, epoch: int, reader_id: str, known_blocks: int) -> Followed | None:
        """Waits a moment for more than the reader knows of. None while the attempt has no whole block. Raises
        `LeaseLost`."""
        seated = self._seats.acquire(blocking=False)
        try:
            wait_s = _WAIT_S if seated else 0.0
            mark = self._book.follow(attempt_id, epoch, reader_id, known_blocks, wait_s)
        finally:
            if seated:
                self._seats.release()
        prompt = self._prompts.get(attempt_id)
        if mark is None:
            return None
        if prompt is None:
            raise LeaseLost(f"lease {attempt_id} is not one of a prompt in progress")
        ticket = b""
        if len(mark.block_ids) > known_blocks:  # else not to be made: it digests the whole prompt
            tokens = len(mark.block_ids) * self._block_size
            ticket = self._writer.write(attempt_id, attempt_id, prompt, tokens, mark.block_ids)
        return Followed(ticket, mark.closed, mark.held_s)

    def check_idle(self) -> None:
        """AssertionError: a prompt is kept whose lease has gone."""
        assert not self._prompts, f"prompts of no lease: {sorted(self._prompts)}"
