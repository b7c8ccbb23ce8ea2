"""The thread on which a mover lives, so that transfers overlap the engine's forward passes.

Owns the thread, its event loop and its tasks; the engine's thread hands over jobs and collects results without
waiting. While peers may want to read from this engine it also serves the transport, which has no thread of its own.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable

from cluster.errors import EngineFailed, TransferFailed
from kv_transfer.follower import Follower, FollowJob
from kv_transfer.mover import Mover, PullJob, PullResult
from kv_transfer.ticket import Ticket

_log = logging.getLogger(__name__)

_SERVE_EVERY_S = 0.005
_CLOSE_S = 5.0


class MoverThread:
    """`make_mover`, `make_follower` and `serve` run on the thread. All methods may be called from any other thread."""

    def __init__(
        self,
        make_mover: Callable[[], Mover],
        serve: Callable[[], None],
        make_follower: Callable[[Mover], Follower] | None = None,
    ) -> None:
        self._make_mover = make_mover
        self._make_follower = make_follower
        self._serve = serve
        self._serve_until = 0.0
        self._results: queue.SimpleQueue[PullResult] = queue.SimpleQueue()
        self._pulls: dict[str, asyncio.Task[PullResult]] = {}
        self._broken = False
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="kv-mover", daemon=True)
        self._thread.start()
        ready.wait()

    def pull(self, job: PullJob) -> None:
        """Starts a pull; its result comes from `take_results`."""
        self._call(self._start, job.request_id, lambda: self._mover.pull(job), lambda: self._mover.release(job.ticket))

    def follow(self, job: FollowJob) -> None:
        """As `pull`, of a prompt that is still being computed."""
        self._call(self._start, job.request_id, lambda: self._follower.follow(job), lambda: self._follower.leave(job))

    def prompts_done(self, request_ids: Iterable[str]) -> None:
        """The prompts that these requests follow have been computed. Unknown ids are no error."""
        for request_id in request_ids:
            self._call(lambda request_id=request_id: self._follower.prompt_done(request_id))

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Ends these requests' pulls early. Unknown ids are no error."""
        if ids := tuple(request_ids):
            self._call(self._cancel, ids)

    def release(self, ticket: Ticket) -> None:
        self._call(lambda: self._mover.release(ticket))

    def serve_for(self, seconds: float) -> None:
        """Serves peers that connect to us or read from us; 0 stops it."""
        self._serve_until = time.monotonic() + seconds
        self._call(self._wake.set)

    def take_results(self) -> list[PullResult]:
        """Every result once. Raises `EngineFailed` when the thread has died: its pulls would never end."""
        if self._broken:
            raise EngineFailed("the thread that moves KV blocks has died; its last words are in the log")
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        return results

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end."""
        self._thread.join(timeout_s)

    def close(self) -> None:
        """Cancels all pulls and ends the thread. May be called twice."""
        if self._thread.is_alive():
            self._call(self._stop.set)
            self.join(_CLOSE_S)

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._main(ready))
        except Exception:
            self._broken = True
            _log.exception("the thread that moves KV blocks has died")
        finally:
            ready.set()

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake, self._stop = asyncio.Event(), asyncio.Event()
        self._mover = self._make_mover()
        if self._make_follower is not None:
            self._follower = self._make_follower(self._mover)
        serving = asyncio.create_task(self._serve_peers())
        stopping = asyncio.create_task(self._stop.wait())
        ready.set()
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, stopping, *self._pulls.values()):
            task.cancel()
        await asyncio.wait({serving, stopping, *self._pulls.values()}, timeout=_CLOSE_S / 2)
        await self._mover.close()
        if serving.done() and not serving.cancelled():
            serving.result()

    async def _serve_peers(self) -> None:
        while True:
            if time.monotonic() >= self._serve_until:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                self._serve()
            except TransferFailed as error:
                _log.warning("cannot serve readers: %s", error)
                await asyncio.sleep(1.0)
            await asyncio.sleep(_SERVE_EVERY_S)

    def _start(
        self, request_id: str, pull: Callable[[], Coroutine[None, None, PullResult]], leave: Callable[[], None]
    ) -> None:
        """`leave` is for a pull that is cancelled before it began."""
        task = asyncio.create_task(pull())
        self._pulls[request_id] = task
        task.add_done_callback(functools.partial(self._ended, request_id, leave))

    def _cancel(self, request_ids: tuple[str, ...]) -> None:
        for request_id in request_ids:
            if task := self._pulls.get(request_id):
                task.cancel()

    def _ended(self, request_id: str, leave: Callable[[], None], task: asyncio.Task[PullResult]) -> None:
        del self._pulls[request_id]
        if task.cancelled():  # before it began
            leave()
            self._results.put(PullResult(request_id, "none", "cancelled"))
        elif (error := task.exception()) is not None:
            _log.error("request %s: its pull broke", request_id, exc_info=error)
            leave()
            self._results.put(PullResult(request_id, "none", "failed", reason=str(error)))
        else:
            self._results.put(task.result())

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)
