"""The attempts that a worker has open: whose they are, what they still owe, how they ended. Pure state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from cluster.engine import EngineOutput

Owner = TypeVar("Owner")


@dataclass(slots=True)
class _Open(Generic[Owner]):
    owner: Owner
    unstarted_tokens: int  # of the prompt; 0 once the first output has come
    awaited: bool
    pulls: bool  # False once the first output has come


class AttemptTable(Generic[Owner]):
    """`Owner` is whoever the outputs go to."""

    def __init__(self) -> None:
        self._open: dict[str, _Open[Owner]] = {}
        self._outcomes: Counter[str] = Counter()
        self._queued_tokens = 0
        self._awaited = 0
        self._pulling = 0

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, attempt_id: object) -> bool:
        return attempt_id in self._open

    @property
    def awaited(self) -> int:
        """Open attempts whose output somebody waits for."""
        return self._awaited

    @property
    def only_pulling(self) -> bool:
        """Whether all that somebody waits for may itself be waiting for blocks of another worker."""
        return self._awaited == self._pulling

    @property
    def queued_prefill_tokens(self) -> int:
        """Prompt tokens submitted whose attempts have had no output yet."""
        return self._queued_tokens

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Ended attempts by finish reason."""
        return self._outcomes

    def owner(self, attempt_id: str) -> Owner | None:
        held = self._open.get(attempt_id)
        return None if held is None else held.owner

    def owned_by(self, owner: Owner) -> list[str]:
        return [attempt_id for attempt_id, held in self._open.items() if held.owner is owner]

    def add(
        self, attempt_id: str, owner: Owner, prompt_tokens: int, *, awaited: bool = True, pulls: bool = False
    ) -> None:
        """The id must not be open already. `awaited`: False for one that may rightly be silent for long. `pulls`:
        blocks of another worker come first."""
        assert attempt_id not in self._open, f"attempt {attempt_id} is open already"
        self._open[attempt_id] = _Open(owner, prompt_tokens, awaited, pulls)
        self._queued_tokens += prompt_tokens
        self._awaited += awaited
        self._pulling += pulls

    def take(self, output: EngineOutput) -> Owner | None:
        """Notes an output and returns whom it is for; None for an attempt that is not open (any more)."""
        held = self._open.get(output.attempt_id)
        if held is None:
            return None
        self._queued_tokens -= held.unstarted_tokens
        self._pulling -= held.pulls
        held.unstarted_tokens, held.pulls = 0, False
        if output.finish_reason is not None:
            self.end(output.attempt_id, output.finish_reason.value)
        return held.owner

    def end(self, attempt_id: str, outcome: str) -> bool:
        """False when it was not open."""
        held = self._open.pop(attempt_id, None)
        if held is None:
            return False
        self._queued_tokens -= held.unstarted_tokens
        self._awaited -= held.awaited
        self._pulling -= held.pulls
        self._outcomes[outcome] += 1
        return True

    def end_all(self, attempt_ids: Iterable[str], outcome: str) -> list[str]:
        """Those that were open."""
        return [attempt_id for attempt_id in attempt_ids if self.end(attempt_id, outcome)]

    def refused(self) -> None:
        """Counts an attempt that never came to be open."""
        self._outcomes["refused"] += 1

    def check_integrity(self) -> None:
        """Recounts; raises `AssertionError` on a difference."""
        assert self._queued_tokens == sum(held.unstarted_tokens for held in self._open.values())
        assert self._awaited == sum(held.awaited for held in self._open.values())
        assert self._pulling == sum(held.pulls for held in self._open.values())
