"""A worker in its place: announced while it lives, stopped in order, gone once it is drained. Runs in whatever hosts
it; knows no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.clock import Clock
from cluster.config import Config, PoolConfig
from cluster.engine import Engine, Role
from cluster.errors import DeadlineExceeded, WorkerLost
from cluster.membership import WORKER_TTL_S, Directory, announce_until_cancelled
from cluster.worker import Worker, WorkerSpec

logger = logging.getLogger(__name__)

_WILDCARDS = {"0.0.0.0", "::", "[::]"}
_WITHDRAW_S = 5.0

BuildEngine = Callable[[WorkerSpec, Path], Awaitable[Engine]]


def worker_spec(role: Role, pool: PoolConfig, config: Config, node_address: str) -> WorkerSpec:
    """A new worker with a new epoch. A wildcard listens everywhere and is announced as the address of its machine."""
    return WorkerSpec(
        worker_id=f"{role.value}-{secrets.token_hex(4)}",
        role=role,
        epoch=time.time_ns(),
        listen_host=pool.listen_host,
        advertise_host=node_address if pool.listen_host in _WILDCARDS else pool.listen_host,
        stall_after_s=config.engine.stall_after_s,
        tls=config.security.cluster_tls,
    )


class WorkerReplica:
    """`build` makes the engine, not started, with a folder of its own that outlives it."""

    def __init__(
        self, spec: WorkerSpec, build: BuildEngine, directory: Directory, clock: Clock, drain_s: float
    ) -> None:
        self._spec = spec
        self._build = build
        self._directory = directory
        self._clock = clock
        self._drain_s = drain_s
        self._worker: Worker | None = None
        self._starting: asyncio.Task[Worker] | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None  # waits for the end of a drain
        self._ending: asyncio.Task[None] | None = None
        self._drained: str | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def worker(self) -> Worker:
        """Raises `WorkerLost` before the start and once it was drained."""
        if self._drained is not None:
            raise WorkerLost(f"worker {self._spec.worker_id} was drained: {self._drained}".removesuffix(": "))
        if self._worker is None:
            raise WorkerLost(f"worker {self._spec.worker_id} does not run")
        return self._worker

    async def start(self) -> None:
        """Raises what kept the worker from starting; `CancelledError` when `stop` comes first. Leaves nothing
        behind."""
        self._folder = tempfile.TemporaryDirectory(prefix=f"baton-{self._spec.worker_id}-")
        self._starting = asyncio.create_task(self._start_worker(Path(self._folder.name)), name="worker start")
        try:
            self._worker = await self._starting
        except BaseException:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._folder.cleanup()
            raise
        self._announcing = asyncio.create_task(self._keep_announced(), name="worker announcements")
        self._leaving = asyncio.create_task(self._leave_when_drained(), name="worker drain")

    def check_health(self) -> None:
        """Raises `WorkerLost` with the reason when this replica must be replaced."""
        self.worker.check_health()
        for task, does in ((self._announcing, "announces itself"), (self._leaving, "can be drained")):
            if task is not None and task.done():
                raise WorkerLost(f"worker {self._spec.worker_id} no longer {does}: see its log")

    async def stop(self) -> None:
        """Takes nothing new, finishes what is open within the drain time, moves the rest, leaves the directory and ends
        engine and server. May be called twice, also at once, and while `start` runs."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._worker is not None:
            if self._ending is None:
                await self._worker.drain(self._drain_s)
            await self._end(self._worker, "its replica was stopped")

    async def _start_worker(self, folder: Path) -> Worker:
        worker = Worker(self._spec, await self._build(self._spec, folder), self._clock)
        await worker.start()
        return worker

    async def _keep_announced(self) -> None:
        try:
            await announce_until_cancelled(self._directory, self.worker.record, WORKER_TTL_S, self._clock)
        except Exception:
            logger.exception("worker %s stops announcing itself", self._spec.worker_id)
            raise

    async def _leave_when_drained(self) -> None:
        """The end of a drain is the end of the worker, whoever ordered it. Routers see it drain until then."""
        worker = self.worker
        why = await worker.drained()
        try:
            await self._end(worker, why)
        except Exception:
            logger.exception("worker %s was drained and does not end well", self._spec.worker_id)
            raise

    async def _end(self, worker: Worker, why: str) -> None:
        """Once, whoever comes first."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._take_down(worker, why), name="worker end")
        await asyncio.shield(self._ending)

    async def _take_down(self, worker: Worker, why: str) -> None:
        await self._withdraw(worker)
        self._drained = why
        if self._leaving is not None:
            self._leaving.cancel()
        await worker.close()
        if self._folder is not None:
            self._folder.cleanup()

    async def _withdraw(self, worker: Worker) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
        record = worker.record
        with contextlib.suppress(DeadlineExceeded, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_S):
                await self._directory.withdraw(record.worker_id, record.epoch)
