"""What an engine needs of the hand-off of KV blocks, without knowing how blocks move.

`KvLink` is an owner's line to the connector that lives inside a vLLM engine core, `ConnectorDialect` what to say to one
that does not know our tickets; `Handoff` is the whole hand-off of a simulated engine. All are implemented in
`kv_transfer`, which may import this package; this package never imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.engine import EngineLoad, EngineRequest, PromptOrigin, TransferCount, TransferRung


@dataclass(frozen=True, slots=True)
class KvStats:
    """Counted where the blocks are. `pinned_blocks` are those that leases hold now; `pending_releases` are leases
    that ended but whose blocks the engine has not taken back yet, which it does at its next step; transfers are pulls
    by this engine; `*_sent` are completed reads out of it."""

    leases: int = 0
    pinned_blocks: int = 0
    pending_releases: int = 0
    leases_offered: int = 0
    leases_released: int = 0
    leases_expired: int = 0
    blocks_sent: int = 0
    bytes_sent: int = 0
    recomputed_requests: int = 0
    transfers: tuple[TransferCount, ...] = ()


class KvLink(Protocol):
    """From the owner of a vLLM engine core to the connector inside it. Usable once the engine core has started; every
    call has a deadline of its own and raises `EngineFailed` when the connector does not answer."""

    async def address(self) -> str:
        """host:port of this engine's KvSource; waits until the connector listens."""
        ...

    async def fingerprint(self) -> bytes:
        """What a peer's fingerprint must equal for blocks to be exchanged."""
        ...

    async def stats(self) -> KvStats: ...

    async def release(self, lease_id: str) -> None:
        """Ends the lease; its blocks return to the engine at its next step. Unknown ids are no error."""
        ...

    async def close(self) -> None:
        """Closes the line; the connector ends with its engine core. May be called twice."""
        ...


ConnectorParams = Mapping[str, object]
"""`kv_transfer_params` of one request, as the connector inside a vLLM engine core takes and gives them: not looked
into by anyone else."""


class ConnectorDialect(Protocol):
    """Translates for a connector that is not ours, and counts what its engine tells about it. Called on one event
    loop; nothing here waits or raises."""

    def ask(self, request: EngineRequest) -> ConnectorParams | None:
        """What goes into the engine with a request; None and the engine computes the prompt without the connector."""
        ...

    def ticket(self, request: EngineRequest, answer: ConnectorParams) -> bytes:
        """What came out with the end of a prefill leg, as a ticket; empty when nothing is handed over."""
        ...

    def began(self, request: EngineRequest, origin: PromptOrigin) -> None:
        """The engine has the attempt's prompt."""
        ...

    def ended(self, attempt_id: str) -> None:
        """No more comes of the attempt, whose prompt may never have begun."""
        ...

    def stepped(self, load: EngineLoad, counters: Mapping[str, Sequence[float]]) -> None:
        """After each step: what it left in the engine, and what the connector counted during it."""
        ...


class Handoff(Protocol):
    """The hand-off of one simulated engine: the engine owns the blocks, the hand-off owns the leases on them."""

    @property
    def fingerprint(self) -> bytes:
        """What a peer's fingerprint must equal for blocks to be exchanged."""
        ...

    async def start(self, freed: Callable[[Sequence[int]], None]) -> str:
        """Starts serving and returns host:port of its KvSource, empty without one. From then on `freed(block_ids)` is
        called on the same event loop, once for each lease, when it ends: the ids are those of its offer."""
        ...

    def offer(self, attempt_id: str, num_tokens: int, block_ids: Sequence[int]) -> bytes:
        """Puts a lease on the blocks of a finished prefill and returns the ticket for it."""
        ...

    def tokens_in(self, ticket: bytes) -> int:
        """Prompt tokens whose KV the ticket hands over. Raises `TicketRefused`."""
        ...

    async def pull(self, ticket: bytes, missing_blocks: int) -> tuple[TransferRung, ...]:
        """Fetches the last `missing_blocks` blocks of the ticket, maybe none, and completes its lease; returns how they
        came. Raises `TransferFailed` within its own deadline; cancelling it leaves nothing behind."""
        ...

    async def release(self, lease_id: str) -> None:
        """Ends a lease that nobody will read. Unknown ids are no error."""
        ...

    async def stats(self) -> KvStats: ...

    async def close(self) -> None:
        """Stops serving. May be called twice."""
        ...
