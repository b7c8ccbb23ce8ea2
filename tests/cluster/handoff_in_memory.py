"""A hand-off between simulated engines of one process, without leases that expire: for tests of the engine itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.engine import TransferRung
from cluster.errors import TransferFailed
from cluster.kv_link import KvStats


class MemoryHandoff:
    """Tickets are `lease:tokens`. `shared` maps lease ids to the hand-offs that offered them, for all of a test."""

    def __init__(self, shared: dict[str, MemoryHandoff]) -> None:
        self.shared = shared
        self.failing = False
        self.held_back: asyncio.Event | None = None
        self.pulled: list[int] = []
        self._leases: dict[str, tuple[int, ...]] = {}
        self._freed: Callable[[Sequence[int]], None] = lambda blocks: None

    @property
    def fingerprint(self) -> bytes:
        return b"memory"

    async def start(self, freed: Callable[[Sequence[int]], None]) -> str:
        self._freed = freed
        return "memory:0"

    def offer(self, attempt_id: str, num_tokens: int, block_ids: Sequence[int]) -> bytes:
        lease_id = f"lease-of-{attempt_id}"
        self._leases[lease_id] = tuple(block_ids)
        self.shared[lease_id] = self
        return f"{lease_id}:{num_tokens}".encode()

    def tokens_in(self, ticket: bytes) -> int:
        return int(ticket.rpartition(b":")[2])

    async def pull(self, ticket: bytes, missing_blocks: int) -> tuple[TransferRung, ...]:
        if self.held_back is not None:
            await self.held_back.wait()
        lease_id = ticket.rpartition(b":")[0].decode()
        if self.failing:
            raise TransferFailed("told to fail")
        self.pulled.append(missing_blocks)
        await self.shared[lease_id].release(lease_id)
        return (TransferRung("memory", "landed", missing_blocks),)

    async def release(self, lease_id: str) -> None:
        if (blocks := self._leases.pop(lease_id, None)) is not None:
            self._freed(blocks)

    async def stats(self) -> KvStats:
        return KvStats(leases=len(self._leases))

    async def close(self) -> None: ...
