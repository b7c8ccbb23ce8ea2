"""What Baton asks of an engine.

Two engines answer: `vllm_engine.VllmEngine` and `simulated_engine.SimulatedEngine`. An engine is tokens in, tokens out,
in steps: every step yields the outputs of all attempts that moved in it. How the blocks of a finished prefill reach
another engine is its own business, not that of its callers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from cluster.block_changes import BlockDelta


class Role(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


class Leg(Enum):
    """What one attempt is to do.

    PREFILL: the prompt and one token, then a ticket. DECODE: pull the ticket's blocks, then continue.
    WHOLE: prompt and output here. PREFETCH: pull the blocks of a prompt while another worker still computes it, into
    this one's prefix cache; its tokens mean nothing.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    WHOLE = "whole"
    PREFETCH = "prefetch"


class FinishReason(Enum):
    """`MOVED`: the worker is not ready, or is leaving; another one is to go on. `LOST`: its engine died."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"
    MOVED = "moved"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Sampling:
    """The part of the sampling parameters that Baton itself must know.

    `logprobs`: how many likely alternatives to report beside each sampled token; None reports nothing.
    """

    max_tokens: int
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillInProgress:
    """A prefill leg that another worker runs. `source`: host:port of its engine's KvSource."""

    source: str
    epoch: int
    attempt_id: str


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt at one leg.

    `engine_params`: the engine's own sampling parameters, opaque to everyone but the engine's two adapters.
    `ticket`: serialized `Ticket`, for `Leg.DECODE` only. `follow`: for `Leg.PREFETCH` only. `after_attempt_id`: for
    `Leg.DECODE`, the prefetch in the same engine whose end it waits for; empty without one.
    """

    attempt_id: str
    leg: Leg
    prompt_token_ids: list[int]
    sampling: Sampling
    engine_params: bytes = b""
    ticket: bytes = b""
    cache_salt: str = ""
    priority: int = 0
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    follow: PrefillInProgress | None = None
    after_attempt_id: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Logprobs at one position: the sampled token first, then the most likely ones. `rank` 1 is the most likely."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class PromptOrigin:
    """Where the prompt's KV came from, tokens: this engine's prefix cache, another worker, or (the rest) computed."""

    prompt_tokens: int
    cached_tokens: int
    pulled_tokens: int


@dataclass(frozen=True, slots=True)
class TransferRung:
    """One step of the ladder by which blocks were to come. `outcome`: "landed", or why not; `reason` in words. `bytes`
    of one rank. `began_unix_s`: by the worker's wall clock, 0 where nothing was tried. `handshake_s`: of `seconds`,
    those before the first byte was asked for."""

    transport: str
    outcome: str
    blocks: int = 0
    bytes: int = 0
    reason: str = ""
    began_unix_s: float = 0.0
    seconds: float = 0.0
    handshake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What one step gave one attempt. `origin` comes with the attempt's first output, `ticket` with the last of a
    prefill leg whose blocks were pinned, `rungs` with the last of a decode leg, `error` with `FinishReason.ERROR`."""

    attempt_id: str
    token_ids: list[int]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    ticket: bytes = b""
    origin: PromptOrigin | None = None
    rungs: tuple[TransferRung, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts that hold for the life of one engine start. `source`: host:port of its KvSource, empty without one."""

    engine: str
    model: str
    max_model_len: int
    block_size: int
    num_blocks: int
    fingerprint: bytes = b""
    source: str = ""


@dataclass(frozen=True, slots=True)
class TransferCount:
    """`outcome`: landed, failed, refused or stale; and once more, of the landed blocks, as `ahead` those that came
    while their prompt was still being computed. `seconds` that they took together."""

    transport: str
    outcome: str
    count: int
    blocks: int
    bytes: int
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counted by the engine itself.

    `kv_usage`: share of blocks in use, 0 to 1. `pinned_blocks`: those that leases hold now. `pending_releases`: leases
    that have ended, but still hold theirs. `transfers`: pulls by this engine. `*_sent`: completed reads out of it.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
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


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """As of the last step: attempts in the batch, attempts before it, share of KV blocks in use (0 to 1)."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class Engine(Protocol):
    """Not thread-safe: all calls from one event loop. Every method raises `EngineFailed` once the engine is dead."""

    async def start(self) -> EngineInfo:
        """Loads the model. Raises `EngineFailed` with the engine's own last words."""
        ...

    async def submit(self, request: EngineRequest) -> None:
        """Queues the attempt; its outputs come from `step`."""
        ...

    async def abort(self, attempt_ids: Sequence[str]) -> None:
        """Stops the attempts and frees their blocks. No output follows for them, but for the ticket of one that had
        just finished: its lease is then to be released. Unknown ids are no error."""
        ...

    async def step(self) -> list[EngineOutput]:
        """Waits for the next step and returns its outputs; none means that the engine moved but has nothing to tell
        yet."""
        ...

    async def block_changes(self) -> BlockDelta:
        """Waits until full blocks entered or left the prefix cache and returns the net since the last call; the first
        call starts from an empty cache. Waits for ever in an engine that does not tell."""
        ...

    def load(self) -> EngineLoad:
        """What the last step left behind; costs nothing."""
        ...

    async def release(self, lease_id: str) -> None:
        """Ends a lease that nobody will read; does not wait for the engine's loop, which takes the blocks back. Unknown
        ids are no error."""
        ...

    async def answer(self) -> None:
        """Returns once the engine's own loop has come round: it turns, whatever it has to wait for."""
        ...

    async def stats(self) -> EngineStats:
        """Counts everything anew. Does not wait for the engine's loop."""
        ...

    async def settle(self) -> None:
        """Has the blocks of leases that have ended taken back, which an engine without work does only when it is asked.
        May take some steps of the engine."""
        ...

    async def forget_prefixes(self) -> bool:
        """Forgets every prefix that it holds. False, and nothing is forgotten, while blocks are in use."""
        ...

    async def close(self) -> None:
        """Stops the engine and every process it started. May be called twice."""
        ...
