"""The reading side of a hand-over that begins before its prompt is finished: prefetches, and who waits for them.

    WAITING ──blocks allocated──▶ FOLLOWING ──landed──▶ LANDED ──scheduler went on──▶ READY   now prefix cache
       │                             └─────failed─────▶ PARKED
       └── nothing to fetch ──▶ READY

A parked request waits until it is aborted, or its prompt is in the cache anyway: computing it is not our business here.
The request that continues the prompt waits while its prefetch is under way, and then finds the blocks in the cache.
Runs on the engine's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from cluster.engine import PrefillInProgress
from kv_transfer.connector.exporter import prompt_of
from kv_transfer.follower import FollowJob


class Phase(Enum):
    WAITING = auto()
    FOLLOWING = auto()
    LANDED = auto()
    READY = auto()
    PARKED = auto()


_UNDER_WAY = frozenset({Phase.WAITING, Phase.FOLLOWING, Phase.LANDED})


@dataclass(slots=True)
class Prefetch:
    """`local` tokens were in our own cache, whole blocks, when the scheduler asked. `prompt_done`: the prompt has been
    computed, so what is not there now will not come."""

    request: Any
    prompt: PrefillInProgress
    phase: Phase = Phase.WAITING
    local: int = 0
    prompt_done: bool = False


class Prefetcher:
    """`patience_s`: for how long a request waits for its prefetch at most."""

    def __init__(self, block_size: int, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._block_size = block_size
        self._patience_s = patience_s
        self._clock = clock
        self._prefetches: dict[str, Prefetch] = {}
        self._following: set[str] = set()  # also those whose request has gone meanwhile
        self._waiting: dict[str, tuple[str, float]] = {}  # request -> its prefetch, and when it stops waiting for it
        self._jobs: list[FollowJob] = []
        self._done_prompts: list[str] = []

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._prefetches

    def begin(self, request: Any, prompt: PrefillInProgress) -> None:
        """A request came whose prompt another engine computes at this time."""
        self._prefetches[request.request_id] = Prefetch(request, prompt)

    def await_prefetch(self, request_id: str, prefetch_id: str) -> None:
        """This request continues the prompt of that prefetch; so the prompt is finished."""
        prefetch = self._prefetches.get(prefetch_id)
        if prefetch is None or prefetch.phase not in _UNDER_WAY:
            return
        self._waiting[request_id] = prefetch_id, self._clock() + self._patience_s
        prefetch.prompt_done = True
        if prefetch.phase is Phase.FOLLOWING:
            self._done_prompts.append(prefetch_id)

    def must_wait(self, request_id: str) -> bool:
        """Whether the request should be asked about again later."""
        if request_id not in self._waiting:
            return False
        prefetch_id, until = self._waiting[request_id]
        prefetch = self._prefetches.get(prefetch_id)
        if prefetch is not None and prefetch.phase in _UNDER_WAY and self._clock() < until:
            return True
        del self._waiting[request_id]
        return False

    def missing_tokens(self, request: Any, local_tokens: int) -> int | None:
        """How many tokens of whole blocks there are to fetch behind the `local_tokens`; the few that remain the engine
        computes. None: none will come, and the prompt must not be computed."""
        prefetch = self._prefetches[request.request_id]
        missing = max(0, self._useful_blocks(prefetch) * self._block_size - local_tokens)
        if prefetch.phase is Phase.WAITING:
            prefetch.local = local_tokens
        elif missing:  # failed, or lost its blocks to others after they had landed
            prefetch.phase = Phase.PARKED
            return None
        return missing

    def allocated(self, request_id: str, block_ids: list[int], external_tokens: int) -> None:
        """The scheduler gave the request its blocks; `external_tokens` of them are to be fetched. Called again, with 0,
        when the request goes on: then its blocks are in the cache."""
        prefetch = self._prefetches[request_id]
        if external_tokens == 0:
            prefetch.phase = Phase.READY
            return
        first, end = prefetch.local // self._block_size, self._useful_blocks(prefetch)
        prompt, target = prompt_of(prefetch.request), tuple(block_ids[first:end])
        self._jobs.append(FollowJob(request_id, prefetch.prompt, prompt, first, target, prefetch.prompt_done))
        self._following.add(request_id)
        prefetch.phase = Phase.FOLLOWING

    def received(self, request_ids: set[str], failed: set[str]) -> set[str]:
        """Of these, the prefetches whose end was awaited; all ranks of them are done, but for the `failed` in vain."""
        known = request_ids & self._following
        self._following -= known
        for request_id in known & self._prefetches.keys():
            self._prefetches[request_id].phase = Phase.PARKED if request_id in failed else Phase.LANDED
        return known

    def finish(self, request_id: str) -> None:
        """The request is over: a prefetch, or one that waited for it."""
        self._prefetches.pop(request_id, None)
        self._waiting.pop(request_id, None)

    def take_orders(self) -> tuple[tuple[FollowJob, ...], tuple[str, ...]]:
        """What the ranks are to follow, and which prompts are finished, each once."""
        jobs, self._jobs = tuple(self._jobs), []
        done, self._done_prompts = tuple(self._done_prompts), []
        return jobs, done

    @property
    def has_orders(self) -> bool:
        return bool(self._jobs or self._done_prompts)

    def check_idle(self) -> None:
        """AssertionError: something of a request that has ended is still here."""
        assert not self._prefetches, f"prefetches of no request: {sorted(self._prefetches)}"
        assert not self._following, f"prompts followed for no request: {sorted(self._following)}"
        assert not self._waiting, f"requests that are over wait: {sorted(self._waiting)}"
        assert not self.has_orders, "orders that nobody has taken"

    def _useful_blocks(self, prefetch: Prefetch) -> int:
        # The last token's output is what the engine is there for, so that one is never fetched.
        useful: int = (prefetch.request.num_prompt_tokens - 1) // self._block_size
        return useful
