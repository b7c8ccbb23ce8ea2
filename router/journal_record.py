"""The record of one request: what was decided and why, what was tried, what was predicted and what happened.

Plain structs and their bytes; who writes them and where they are kept is `router/journal.py`'s business. A field that
an older reader does not know is skipped, one that an older writer did not write has its default. Seconds throughout.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cluster.errors import BatonError


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker that could have been chosen. `terms`: what it would cost, seconds by name."""

    worker_id: str
    terms: Mapping[str, float] = {}

    @property
    def total_s(self) -> float:
        return sum(self.terms.values())


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One choice. `question`: the leg that it was for ("prefill", "decode", "whole", "prefetch"), or "disaggregate".
    `at_s` counts from the request's arrival. The chosen candidate leads those that are kept, the best of the others
    follow, and `left_out` counts the rest. `because`: the rule that decided, in words."""

    question: str
    at_s: float
    chosen: str
    runner_up: str = ""
    candidates: tuple[Candidate, ...] = ()
    left_out: int = 0
    because: str = ""


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt at one leg. `outcome`: "completed", "failed", "cancelled", "late", "lost", "stalled" or "moved".
    `first_at_s`: when its first output came, counted as `at_s`; None: none came."""

    attempt_id: str
    leg: str
    worker_id: str
    at_s: float
    duration_s: float
    outcome: str
    reason: str = ""
    first_at_s: float | None = None


class Rung(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of the ladder that moves KV blocks. `transport`: "nixl", "grpc"; "local" where the blocks were there
    already. `size`: bytes of one rank. `at_s` counts from the request's arrival, as far as the clocks of both machines
    agree; `handshake_s`: of `duration_s`, those before the first byte was asked for."""

    attempt_id: str
    transport: str
    outcome: str
    blocks: int = 0
    size: int = 0
    reason: str = ""
    at_s: float = 0.0
    duration_s: float = 0.0
    handshake_s: float = 0.0


class Timing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Time to first token, and mean time between tokens; None: not known, or there was none."""

    ttft_s: float | None = None
    itl_s: float | None = None


class RequestRecord(msgspec.Struct, omit_defaults=True):
    """`at_unix_s`: arrival, by the router's wall clock. `outcome` is empty while the request runs. `trace_id`: empty
    where requests are not traced."""

    request_id: str
    router_id: str
    at_unix_s: float
    tenant: str
    prompt_tokens: int
    priority: str = ""
    session_id: str = ""
    queued_s: float = 0.0
    cached_tokens_predicted: int = 0
    cached_tokens_actual: int | None = None
    predicted: Timing = Timing()
    actual: Timing = Timing()
    decisions: list[Decision] = []
    attempts: list[Attempt] = []
    rungs: list[Rung] = []
    output_tokens: int = 0
    duration_s: float = 0.0
    outcome: str = ""
    error: str = ""
    trace_id: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RequestRecord)


class BadRecord(BatonError):
    """A stored record cannot be read: another version wrote it, or it was damaged."""


def encoded(record: RequestRecord) -> bytes:
    return _encoder.encode(record)


def decoded(body: bytes) -> RequestRecord:
    """Raises `BadRecord`."""
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadRecord(f"the journal's record cannot be read: {error}") from error
