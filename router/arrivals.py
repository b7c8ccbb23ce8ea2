"""How much has been asked of this router since its start: requests, and prompt tokens that had to be computed for them.

What of a prompt is cached shows only when it is placed; until then it is taken for like the prompts before it.
"""

from __future__ import annotations

_NEWEST = 0.05
"""Weight of the newest prompt in the share of prompt tokens that are not cached."""


class Arrivals:
    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0.0
        self._uncached_share = 1.0

    def came(self, prompt_tokens: int) -> None:
        self.requests += 1
        self.tokens += self.to_compute(prompt_tokens)

    def to_compute(self, prompt_tokens: int) -> float:
        """Of prompt tokens that are not placed yet."""
        return prompt_tokens * self._uncached_share

    def placed(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt of so many tokens, of which its worker has so many."""
        if prompt_tokens > 0:
            uncached = 1.0 - min(1.0, cached_tokens / prompt_tokens)
            self._uncached_share += _NEWEST * (uncached - self._uncached_share)
