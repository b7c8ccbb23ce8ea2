"""What the configured connector lets a hand-over do, as the router must know it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import KvTransferConfig


@dataclass(frozen=True, slots=True)
class HandoverRules:
    """`first_token_from_prefill`: whether decode can go on behind a token that prefill sampled; if not, decode samples
    the first token of every request itself. `pipelining_from`: prompts of so many tokens and more move to decode while
    they are computed; None: none does."""

    first_token_from_prefill: bool = True
    pipelining_from: int | None = None

    @classmethod
    def of(cls, config: KvTransferConfig) -> HandoverRules:
        return cls(
            first_token_from_prefill=config.first_token_from_prefill,
            pipelining_from=config.pipelining_least_tokens if config.chunk_pipelining else None,
        )


DEFAULT_RULES = HandoverRules()
