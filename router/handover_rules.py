"""What the configured connector lets a hand-over do, as the router must know it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config_transfer import KvTransferConfig
from cluster.engine import EngineRequest, PrefillInProgress
from router.fleet_view import WorkerView


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

    def follow(self, worker: WorkerView | None, request: EngineRequest) -> PrefillInProgress | None:
        """How others can follow this prefill leg on this worker; None: it is not worth it, or cannot be."""
        if self.pipelining_from is None or worker is None or not worker.source:
            return None
        if len(request.prompt_token_ids) < self.pipelining_from:
            return None
        return PrefillInProgress(worker.source, worker.epoch, request.attempt_id)


DEFAULT_RULES = HandoverRules()
