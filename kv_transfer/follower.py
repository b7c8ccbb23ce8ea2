"""Following a prompt that another engine is still computing: pulls its blocks as they become whole.

Runs on the mover's event loop. How blocks are read is the mover's business; this module asks the source again and again
how far the prompt has come, until all wanted blocks are here, and then completes the lease once for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Protocol

from cluster.engine import PrefillInProgress
from cluster.errors import BatonError, LeaseLost, TransferFailed
from kv_transfer.climb import Climb
from kv_transfer.growing_exports import Followed
from kv_transfer.mover import PullJob, PullResult, outcome_of
from kv_transfer.source_client import SourceClient
from kv_transfer.ticket import Ticket, check_prompt, unseal
from kv_transfer.ticket_writer import Prompt

_ASK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True)
class FollowJob:
    """The prompt's blocks from the `first` on into as many of ours, `target`. `prompt_done`: what is not there now will
    not come."""

    request_id: str
    origin: PrefillInProgress
    prompt: Prompt
    first: int
    target: tuple[int, ...]
    prompt_done: bool = False


class ReadsBlocks(Protocol):
    """What a follower needs of a mover."""

    def client(self, source: str) -> SourceClient:
        """For calls to a source; the caller closes it."""
        ...

    async def read(self, job: PullJob, climb: Climb) -> None:
        """Claims the lease and reads some of its blocks, but does not end it. However it ends, nothing can write into
        the target any more. Raises `TransferFailed`, `LeaseLost`, `TicketRefused`, `FingerprintMismatch`."""
        ...

    async def complete(self, ticket: Ticket, blocks: int) -> int:
        """Ends the lease after all of `blocks` were read; returns their bytes. Raises `LeaseLost`: they must not be
        used."""
        ...

    def leave(self, source: str, lease_id: str) -> None:
        """Tells the source, in the background, that we shall not read (any more)."""
        ...


@dataclass(slots=True)
class _Progress:
    """Of one job: blocks of the prompt known to be whole, blocks read, and those of them read while it was computed."""

    prompt_done: bool
    known: int = 0
    read: int = 0
    ahead: int = 0
    climb: Climb = field(default_factory=Climb)
    news_at: float = field(default_factory=time.monotonic)


class Follower:
    """`idle_s`: for how long a prompt may make no progress, seconds."""

    def __init__(self, reads: ReadsBlocks, secret: bytes, block_size: int, idle_s: float) -> None:
        self._reads = reads
        self._secret = secret
        self._block_size = block_size
        self._idle_s = idle_s
        self._running: dict[str, _Progress] = {}
        self.blocks_read = 0  # by all jobs that ever ran

    @property
    def running(self) -> int:
        """Jobs that are followed, or to be."""
        return len(self._running)

    def follow(self, job: FollowJob) -> Coroutine[None, None, PullResult]:
        """What is returned must be awaited, or `leave` called. It does not raise: cancelling it ends it as `cancelled`,
        once its target blocks are safe."""
        progress = self._running[job.request_id] = _Progress(job.prompt_done)
        return self._run(job, progress)

    def leave(self, job: FollowJob) -> None:
        """The job will not be followed (any more)."""
        self._running.pop(job.request_id, None)
        self._reads.leave(job.origin.source, job.origin.attempt_id)

    def prompt_done(self, request_id: str) -> None:
        """The prompt of this job has been computed: what is not there now will not come. Unknown ids are no error."""
        if progress := self._running.get(request_id):
            progress.prompt_done = True

    async def _run(self, job: FollowJob, progress: _Progress) -> PullResult:
        try:
            size = await self._follow(job, progress)
        except (asyncio.CancelledError, BatonError) as error:
            outcome, reason = outcome_of(error)
            if outcome != "stale":
                self.leave(job)
            return _result(job, progress, outcome, reason=reason)
        finally:
            self._running.pop(job.request_id, None)
        return _result(job, progress, "landed", len(job.target), size)

    async def _follow(self, job: FollowJob, progress: _Progress) -> int:
        client = self._reads.client(job.origin.source)
        try:
            while True:
                done = progress.prompt_done  # before the question: the answer is not older
                followed = await client.follow(job.origin.attempt_id, job.origin.epoch, progress.known)
                closed = done or (followed is not None and followed.closed)
                if followed is not None and followed.ticket:
                    ticket = self._opened(job, followed, progress.known)
                    await self._take(job, progress, ticket, followed.ticket, ahead=not closed)
                    if progress.read == len(job.target):
                        return await self._reads.complete(ticket, len(job.target))
                elif closed:
                    raise TransferFailed(f"{job.origin.source}: the prompt ended before its blocks were there")
                else:
                    await self._pause(job, progress)
        finally:
            await client.close()

    def _opened(self, job: FollowJob, followed: Followed, known: int) -> Ticket:
        ticket = unseal(followed.ticket, self._secret, self._block_size)
        if (ticket.lease_id, ticket.epoch) != (job.origin.attempt_id, job.origin.epoch):
            raise LeaseLost(f"asked for {job.origin.attempt_id}, was told of {ticket.lease_id}")
        if len(ticket.block_ids) <= known:
            raise TransferFailed(f"{job.origin.source}: its ticket has no more than the {known} blocks that it told of")
        check_prompt(ticket, job.prompt.token_ids, job.prompt.context)
        return ticket

    async def _take(self, job: FollowJob, progress: _Progress, ticket: Ticket, sealed: bytes, *, ahead: bool) -> None:
        progress.known = len(ticket.block_ids)
        source = ticket.block_ids[job.first + progress.read : job.first + len(job.target)]
        if source:
            target = job.target[progress.read : progress.read + len(source)]
            await self._reads.read(PullJob(job.request_id, ticket, sealed, source, target), progress.climb)
            progress.read += len(source)
            self.blocks_read += len(source)
            progress.ahead += len(source) if ahead else 0
        progress.news_at = time.monotonic()

    async def _pause(self, job: FollowJob, progress: _Progress) -> None:
        if time.monotonic() - progress.news_at > self._idle_s:
            raise TransferFailed(f"{job.origin.source}: the prompt made no progress for {self._idle_s:g} s")
        await asyncio.sleep(_ASK_AGAIN_S)


def _result(
    job: FollowJob, progress: _Progress, outcome: str, blocks: int = 0, size: int = 0, reason: str = ""
) -> PullResult:
    return PullResult(
        request_id=job.request_id,
        transport=progress.climb.transport,
        outcome=outcome,
        blocks=blocks,
        bytes=size,
        reason=reason,
        fallen=tuple(progress.climb.fallen),
        ahead=progress.ahead if outcome == "landed" else 0,
        time=progress.climb.time,
    )
