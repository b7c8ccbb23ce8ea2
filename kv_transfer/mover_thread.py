"""The thread on which a mover lives, so that transfers overlap the engine's forward passes.

Owns the thread, its event loop and its tasks; the engine's thread hands over jobs and collects results without
waiting. Beside it runs the thread that serves peers, which ends with it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable

from cluster.errors import EngineFailed
from kv_transfer.follower import Follower, FollowJob
from kv_transfer.mover import Mover, PullJob, PullResult
from kv_transfer.peer_serving import PeerServing
from kv_transfer.ticket import Ticket

_log = logging.getLogger(__name__)

_CLOSE_S = 5.0


class MoverThread:
    """`make_mover` and `make_follower` run on the thread, `serve` on another. All methods may be called from any other
    thread."""

    def __init__(
        self,
        make_mover: Callable[[], Mover],
        serve: Callable[[], None],
        make_follower: Callable[[Mover], Follower] | None = None,
    ) -> None:
        self._make_mover = make_mover
        self._make_follower = make_follower
        self._serving = PeerServing(serve)
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
        self._serving.serve_for(seconds)

    def take_results(self) -> list[PullResult]:
        """Every result once. Raises `EngineFailed` when the thread has died: its pulls would never end."""
        if self._broken or self._serving.broken:
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
            self._serving.close()
            ready.set()

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._mover = self._make_mover()
        if self._make_follower is not None:
            self._follower = self._make_follower(self._mover)
        ready.set()
        await self._stop.wait()
        for task in self._pulls.values():
            task.cancel()
        if self._pulls:
            await asyncio.wait(self._pulls.values(), timeout=_CLOSE_S / 2)
        self._serving.close()  # before what it serves
        await self._mover.close()

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
