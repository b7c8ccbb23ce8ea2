"""What passes between a frontend and the fleet: one request for tokens in, emissions out.

Below a frontend there is no text and no client protocol; above the fleet there are no attempts and no workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from cluster.engine import FinishReason, Sampling, TokenLogprobs
from cluster.errors import BatonError
from router.caller import Caller
from router.sampling_state import NO_HISTORY, SamplingFacts


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One continuation of one prompt; a client's request for n choices is n of these.

    `request_id` is unique in this router; `client_id` is how the client knows it, which others may share. Requests of
    one `session_id` are likely to continue each other. `engine_params` is opaque: the engine's own sampling parameters.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: Sampling
    facts: SamplingFacts = NO_HISTORY
    engine_params: bytes = b""
    cache_salt: str = ""
    priority: int = 0
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    client_id: str = ""
    session_id: str = ""
    caller: Caller = field(default_factory=Caller)

    def headers_for(self, attempt_id: str) -> Mapping[str, str]:
        """What makes spans of the attempt's worker children of the attempt's own."""
        trace = self.caller.trace
        return self.trace_headers if trace is None else trace.headers(attempt_id)


@dataclass(frozen=True, slots=True)
class Emission:
    """The next tokens of one request.

    `cached_tokens` comes with the first emission: prompt tokens that were found in a prefix cache. With `error` the
    request has failed; nothing follows, nor is there a finish reason.
    """

    request_id: str
    token_ids: list[int]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    error: BatonError | None = None


class Outcome(Enum):
    """How a request ended, for the counters. Refused: at the door, before a worker heard of it."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"


class Sink(Protocol):
    """Where emissions go. `deliver` must not raise, must not block, and may call back into the fleet."""

    def deliver(self, emissions: Sequence[Emission]) -> None: ...
