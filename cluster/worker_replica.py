"""A worker in its place: announced while it is ready, stopped in order. Runs in whatever hosts it; knows no Ray."""

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
from cluster.config import EngineConfig, PoolConfig
from cluster.engine import Engine, Role
from cluster.errors import DeadlineExceeded, WorkerLost
from cluster.membership import WORKER_TTL_S, Directory, announce_until_cancelled
from cluster.worker import Worker, WorkerSpec

logger = logging.getLogger(__name__)

_WILDCARDS = {"0.0.0.0", "[::]"}
_WITHDRAW_S = 5.0

BuildEngine = Callable[[WorkerSpec, Path], Awaitable[Engine]]


def worker_spec(role: Role, pool: PoolConfig, engine: EngineConfig, node_address: str) -> WorkerSpec:
    """A new worker with a new epoch. A wildcard listens everywhere and is announced as the address of its machine."""
    return WorkerSpec(
        worker_id=f"{role.value}-{secrets.token_hex(4)}",
        role=role,
        epoch=time.time_ns(),
        listen_host=pool.listen_host,
        advertise_host=node_address if pool.listen_host in _WILDCARDS else pool.listen_host,
        stall_after_s=engine.stall_after_s,
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
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def worker(self) -> Worker:
        """Raises `WorkerLost` before the start and after the end."""
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

    def check_health(self) -> None:
        """Raises `WorkerLost` with the reason when this replica must be replaced."""
        self.worker.check_health()
        if self._announcing is not None and self._announcing.done():
            raise WorkerLost(f"worker {self._spec.worker_id} no longer announces itself: see its log")

    async def stop(self) -> None:
        """Leaves the directory, finishes what is open within the drain time, ends engine and server. May be called
        twice, and while `start` runs."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        announcing, self._announcing = self._announcing, None
        if announcing is not None:
            await self._withdraw(announcing)
            if not await self.worker.drain(self._drain_s):
                logger.warning("worker %s stops with work left", self._spec.worker_id)
        if self._worker is not None:
            await self._worker.close()
        if self._folder is not None:
            self._folder.cleanup()

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

    async def _withdraw(self, announcing: asyncio.Task[None]) -> None:
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
        record = self.worker.record
        with contextlib.suppress(DeadlineExceeded, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_S):
                await self._directory.withdraw(record.worker_id, record.epoch)
