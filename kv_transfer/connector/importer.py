"""The reading side of the scheduler half: what each request with a ticket still needs, and what became of it.

    WAITING ──blocks allocated──▶ PULLING ──landed──▶ SETTLED       the request goes on behind the pulled tokens
       │                             └───failed─────▶ SETTLED       the engine computes the prompt itself
       └── nothing left to pull, ticket refused, or aborted ──▶ SETTLED

Runs on the engine's own thread. Each ticket is pulled or released exactly once, and counted exactly once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from cluster.engine import TransferRung
from cluster.errors import TicketRefused
from kv_transfer.connector.exporter import context_of
from kv_transfer.mover import PullJob, PullResult
from kv_transfer.pull_counts import PullCounts
from kv_transfer.ticket import Ticket, check_prompt, unseal

_log = logging.getLogger(__name__)

_REFUSED = PullResult("", "none", "refused")
_LOCAL = PullResult("", "local", "landed")  # all useful tokens of the ticket were in our own cache


class Phase(Enum):
    WAITING = auto()
    PULLING = auto()
    SETTLED = auto()


@dataclass(slots=True)
class Fetch:
    """As last asked by the scheduler: `local` tokens are in our own cache (whole blocks), the ticket brings `missing`
    more."""

    ticket: Ticket
    sealed: bytes
    phase: Phase = Phase.WAITING
    local: int = 0
    missing: int = 0


class Importer:
    """`block_size` in tokens."""

    def __init__(self, secret: bytes, block_size: int) -> None:
        self._secret = secret
        self._block_size = block_size
        self._fetches: dict[str, Fetch] = {}
        self._pulling: set[str] = set()  # also those whose request has gone meanwhile
        self._rungs: dict[str, tuple[TransferRung, ...]] = {}  # of requests that are not over
        self._jobs: list[PullJob] = []
        self._releases: list[Ticket] = []
        self.counts = PullCounts()
        self.recomputed_requests = 0

    def begin(self, request: Any, sealed: bytes) -> None:
        """A request came with a ticket. One that is not good is counted and logged, and the request computes its
        prompt."""
        try:
            ticket = unseal(sealed, self._secret, self._block_size)
            check_prompt(ticket, request.prompt_token_ids or [], context_of(request))
        except TicketRefused as error:
            self.counts.add(_REFUSED)
            self._rungs[request.request_id] = replace(_REFUSED, reason=str(error)).rungs
            self.recomputed_requests += 1
            _log.warning("request %s computes its prompt: %s", request.request_id, error)
            return
        self._fetches[request.request_id] = Fetch(ticket, sealed)

    def missing_tokens(self, request: Any, local_tokens: int) -> int:
        """How many tokens a pull would bring behind the `local_tokens` (whole blocks) that this engine has. The
        engine must compute the last token itself to sample the next one, so that one is never pulled."""
        fetch = self._fetches.get(request.request_id)
        if fetch is None or fetch.phase is not Phase.WAITING:
            return 0
        useful = min(fetch.ticket.num_tokens, request.num_tokens - 1)
        fetch.local, fetch.missing = local_tokens, max(0, useful - local_tokens)
        return fetch.missing

    def allocated(self, request_id: str, block_ids: list[int], external_tokens: int) -> None:
        """The scheduler gave the request its blocks; `external_tokens` of them are to be pulled. Called again, with
        0, when the request goes on after its pull."""
        fetch = self._fetches.get(request_id)
        if fetch is None or fetch.phase is not Phase.WAITING:
            return
        if external_tokens > 0:
            first, end = fetch.local // self._block_size, -(-(fetch.local + external_tokens) // self._block_size)
            source, target = fetch.ticket.block_ids[first:end], tuple(block_ids[first:end])
            self._jobs.append(PullJob(request_id, fetch.ticket, fetch.sealed, source, target))
            self._pulling.add(request_id)
            fetch.phase = Phase.PULLING
            return
        fetch.phase = Phase.SETTLED
        self._releases.append(fetch.ticket)
        if fetch.missing:  # a request that must not read caches, such as one for prompt logprobs
            self.recomputed_requests += 1
        else:
            self.counts.add(_LOCAL)
            self._rungs[request_id] = _LOCAL.rungs

    def ended(self, rank: int, result: PullResult) -> None:
        """One rank's pull is over. Blocks and outcome are counted once, bytes for each rank."""
        self.counts.add(result, whole_pull=rank == 0)
        if rank == 0 and result.request_id in self._fetches:
            self._rungs[result.request_id] = result.rungs
        if result.outcome not in ("landed", "cancelled"):
            _log.warning("request %s: pull %s: %s", result.request_id, result.outcome, result.reason)

    def received(self, request_ids: set[str], failed: set[str]) -> set[str]:
        """Of these, the requests whose pull was awaited; all ranks of them are done, but for the `failed` in vain."""
        known = request_ids & self._pulling
        self._pulling -= known
        for request_id in known & self._fetches.keys():
            self._fetches[request_id].phase = Phase.SETTLED
            self.recomputed_requests += request_id in failed
        return known

    def finish(self, request_id: str) -> tuple[TransferRung, ...]:
        """The request is over, perhaps before it began: nobody will read a ticket that still waits. How its blocks
        came."""
        fetch = self._fetches.pop(request_id, None)
        if fetch is not None and fetch.phase is Phase.WAITING:
            self._releases.append(fetch.ticket)
        return self._rungs.pop(request_id, ())

    def take_orders(self) -> tuple[tuple[PullJob, ...], tuple[Ticket, ...]]:
        """What the ranks are to pull and to release, each once."""
        jobs, self._jobs = tuple(self._jobs), []
        releases, self._releases = tuple(self._releases), []
        return jobs, releases

    @property
    def has_orders(self) -> bool:
        return bool(self._jobs or self._releases)

    def check_idle(self) -> None:
        """AssertionError: something of a request that has ended is still here."""
        assert not self._fetches, f"tickets of no request: {sorted(self._fetches)}"
        assert not self._rungs, f"outcomes of no request: {sorted(self._rungs)}"
        assert not self._pulling, f"pulls of no request: {sorted(self._pulling)}"
        assert not self.has_orders, "orders that nobody has taken"
