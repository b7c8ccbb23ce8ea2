"""Watches that a worker's engine moves while it has work, and that it does again after a stall.

Owns when to look and what to ask the engine. What counts as a stall is `progress`'s rule; what follows from one is the
worker's business (`StallHost`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from cluster.attempts import AttemptTable
from cluster.clock import Clock
from cluster.engine import Engine
from cluster.errors import EngineFailed
from cluster.progress import ProgressWatch
from cluster.worker_session import Session
from cluster.worker_spec import State, WorkerSpec

_ANSWER_S = 10.0
_LOOK_SLACK_S = 0.01
_MOVING = (State.READY, State.DRAINING)  # as they should while they have work


class StallHost(Protocol):
    @property
    def state(self) -> State: ...

    async def stalled(self, reason: str) -> None:
        """The engine does not move."""
        ...

    def recovered(self) -> None:
        """It does again."""
        ...


class StallWatch:
    """`run` is the worker's background task, which waits for nothing but the engine's own answer."""

    def __init__(
        self, host: StallHost, engine: Engine, attempts: AttemptTable[Session], spec: WorkerSpec, clock: Clock
    ) -> None:
        self._host = host
        self._engine = engine
        self._attempts = attempts
        self._spec = spec
        self._clock = clock
        self._progress = ProgressWatch(spec.stall_after_s)

    def work_came(self) -> None:
        self._progress.work_came(self._clock.now())

    def work_went(self) -> None:
        """No step is due once nobody waits for one."""
        if not self._attempts.awaited:
            self._progress.work_gone()

    def stepped(self) -> None:
        """The engine has made a step."""
        self._progress.moved(self._clock.now(), work_left=bool(self._attempts.awaited))
        if self._host.state is State.STALLED:
            self._host.recovered()

    async def run(self) -> None:
        """Until the worker has failed."""
        while self._host.state is not State.FAILED:
            asleep = self._clock.now()
            nap_s = self._spec.look_every_s
            if self._host.state in _MOVING:
                nap_s = min(nap_s, self._progress.next_look_s(asleep) + _LOOK_SLACK_S)
            await self._clock.sleep(nap_s)
            # A process that was stopped, or kept from running, cannot say what its engine did meanwhile.
            now = self._clock.now()
            self._progress.excuse(now - asleep - nap_s - _LOOK_SLACK_S, now)
            await self._look()

    async def _look(self) -> None:
        """An engine may rightly be silent while all that it has waits for blocks of others; and one that stalled shows
        no step once its work has been moved. Both are asked whether their loop turns."""
        idle_s = self._progress.stalled_for(self._clock.now())
        if self._host.state is State.STALLED and not self._attempts.awaited:
            if await self._answers():
                self._host.recovered()
        elif idle_s is not None and self._host.state in _MOVING:
            if self._attempts.only_pulling and await self._answers():
                self._progress.moved(self._clock.now(), work_left=bool(self._attempts.awaited))
            elif self._attempts.awaited:
                await self._host.stalled(f"no engine step for {idle_s:.1f} s with {len(self._attempts)} attempts open")

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(min(self._spec.stall_after_s, _ANSWER_S)):
                await self._engine.answer()
        except (EngineFailed, TimeoutError):
            return False
        return True
