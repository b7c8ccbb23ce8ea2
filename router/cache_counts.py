"""How many tokens of prompts were found in caches, and how many placement had expected there. Since the start."""

from __future__ import annotations

from dataclasses import dataclass

from router.journal_record import RequestRecord


@dataclass(slots=True)
class CacheCounts:
    """Over requests whose worker said what it found: those that had no answer count for nothing."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    predicted_tokens: int = 0

    def add(self, record: RequestRecord) -> None:
        if record.cached_tokens_actual is None:
            return
        self.requests += 1
        self.prompt_tokens += record.prompt_tokens
        self.cached_tokens += record.cached_tokens_actual
        self.predicted_tokens += record.cached_tokens_predicted
